"""The words of the Romanian generator: real words with their forms."""

# singular, singular definite, plural, plural definite, gender (n: masculine in the singular, feminine in the plural)
NOUNS = """
băiat băiatul băieți băieții m | copil copilul copii copiii m | profesor profesorul profesori profesorii m
medic medicul medici medicii m | student studentul studenți studenții m | vecin vecinul vecini vecinii m
fermier fermierul fermieri fermierii m | scriitor scriitorul scriitori scriitorii m | prieten prietenul prieteni prietenii m
pisică pisica pisici pisicile f | fată fata fete fetele f | profesoară profesoara profesoare profesoarele f
carte cartea cărți cărțile f | casă casa case casele f | mașină mașina mașini mașinile f | școală școala școli școlile f
scrisoare scrisoarea scrisori scrisorile f | floare floarea flori florile f | stradă strada străzi străzile f
grădină grădina grădini grădinile f | fereastră fereastra ferestre ferestrele f | problemă problema probleme problemele f
poveste povestea povești poveștile f | idee ideea idei ideile f | pădure pădurea păduri pădurile f
bibliotecă biblioteca biblioteci bibliotecile f | piață piața piețe piețele f | cameră camera camere camerele f
oraș orașul orașe orașele n | sat satul sate satele n | parc parcul parcuri parcurile n | tren trenul trenuri trenurile n
drum drumul drumuri drumurile n | ziar ziarul ziare ziarele n | film filmul filme filmele n | telefon telefonul telefoane telefoanele n
birou biroul birouri birourile n | spital spitalul spitale spitalele n | magazin magazinul magazine magazinele n
caiet caietul caiete caietele n | pod podul poduri podurile n | tablou tabloul tablouri tablourile n
"""
PEOPLE = (
    "băiat",
    "copil",
    "profesor",
    "medic",
    "student",
    "vecin",
    "fermier",
    "scriitor",
    "prieten",
    "fată",
    "profesoară",
)
PLACES = (
    "casă",
    "școală",
    "grădină",
    "pădure",
    "bibliotecă",
    "piață",
    "cameră",
    "oraș",
    "sat",
    "parc",
    "spital",
    "magazin",
)
THINGS = (
    "carte",
    "mașină",
    "scrisoare",
    "floare",
    "fereastră",
    "poveste",
    "tren",
    "ziar",
    "film",
    "telefon",
    "caiet",
    "tablou",
)

# present third person singular, plural, participle
VERBS = """
citește citesc citit | vede văd văzut | cumpără cumpără cumpărat | vinde vând vândut | caută caută căutat | găsește găsesc găsit
așteaptă așteaptă așteptat | aduce aduc adus | descrie descriu descris | pierde pierd pierdut | iubește iubesc iubit | arată arată arătat
uită uită uitat | alege aleg ales | primește primesc primit | trimite trimit trimis
"""
# masculine singular, feminine singular, masculine plural, feminine plural
ADJECTIVES = """
bun bună buni bune | frumos frumoasă frumoși frumoase | vechi veche vechi vechi | nou nouă noi noi | mic mică mici mici
mare mare mari mari | tânăr tânără tineri tinere | bătrân bătrână bătrâni bătrâne | scump scumpă scumpi scumpe
liniștit liniștită liniștiți liniștite | celebru celebră celebri celebre | alb albă albi albe | roșu roșie roșii roșii
"""
ADVERBS = ("repede", "încet", "astăzi", "ieri", "mereu", "uneori", "adesea", "aici", "acolo", "bine", "imediat", "rar")
PREPOSITIONS = ("în", "din", "lângă", "prin", "spre", "despre")
FIRST_NAMES = (
    "Ion",
    "Maria",
    "Andrei",
    "Elena",
    "Mihai",
    "Ana",
    "Ștefan",
    "Ioana",
    "Vasile",
    "Cristina",
    "Radu",
    "Ileana",
)
LAST_NAMES = ("Popescu", "Ionescu", "Dumitru", "Stan", "Munteanu", "Rusu", "Țurcanu", "Moraru", "Georgescu", "Lupu")
CITIES = (
    "București",
    "Cluj-Napoca",
    "Iași",
    "Chișinău",
    "Brașov",
    "Timișoara",
    "Bălți",
    "Constanța",
    "Sibiu",
    "Oradea",
)
NATURE = ("Dunăre", "Prut", "Carpați", "Bărăgan", "Nistru", "Ceahlău")
COMPANIES = (
    "Dacia",
    "Petrom",
    "Academia Română",
    "Banca Națională",
    "Radio România",
    "Moldtelecom",
    "Teatrul Național",
)
MONTHS = ("ianuarie", "martie", "aprilie", "mai", "iunie", "septembrie", "octombrie", "decembrie")
NUMBERS = {"m": ("doi", "trei", "patru", "cinci", "zece"), "f": ("două", "trei", "patru", "cinci", "zece")}
SYNONYMS = {
    "vede": "zărește", "cumpără": "achiziționează", "caută": "dibuie", "găsește": "descoperă", "alege": "selectează",
    "primește": "capătă", "trimite": "expediază", "medic": "doctor", "copil": "puști", "mașină": "automobil",
    "scrisoare": "epistolă", "tablou": "pictură", "poveste": "basm", "casă": "locuință", "drum": "cale",
}  # fmt: skip
# title, sentence about {it}; by stars
OPINIONS = {
    1: (("groaznic", "jalnic", "de evitat", "inutil"), ("s-a stricat în prima zi", "nu funcționează deloc", "este cel mai prost cumpărat vreodată", "este o mare țeapă")),
    2: (("slab", "dezamăgit", "sub așteptări", "mediocru"), ("merge greu", "are câteva defecte supărătoare", "este cam scump pentru ce oferă", "nu este chiar ce speram")),
    4: (("bun", "mulțumit", "recomand", "util"), ("își face treaba bine", "este bun pentru prețul lui", "merge bine, cu mici lipsuri", "este aproape cum speram")),
    5: (("excelent", "perfect", "minunat", "superb"), ("este cel mai bun cumpărat vreodată", "funcționează perfect", "depășește toate așteptările", "este o adevărată bijuterie")),
}  # fmt: skip
PRODUCTS = (
    "telefonul",
    "aspiratorul",
    "televizorul",
    "fierul de călcat",
    "ceasul",
    "laptopul",
    "cuptorul",
    "aparatul foto",
)
NEUTRAL = (
    "am comandat acum o lună",
    "livrarea a durat două zile",
    "l-am luat pentru mama",
    "îl folosesc zilnic",
    "a venit în cutie",
)
# Romanian, Moldavian
REGIONAL = (
    ("microbuzul", "rutiera"), ("pepene", "harbuz"), ("porumb", "popușoi"), ("varză", "curechi"), ("cartofi", "barabule"),
    ("prosop", "ștergar"), ("noroi", "glod"), ("ghete", "ciubote"), ("primarul general", "primarul municipiului"), ("lei noi", "lei moldovenești"),
)  # fmt: skip
