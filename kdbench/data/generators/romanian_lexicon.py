"""The words of the Romanian generator: real lemmas with their irregular forms, and the rules for the regular ones.

A table is a string: entries between commas, the forms of an entry between spaces. Letters are those of today's standard,
with a comma below ș and ț. A noun is given by singular and plural, a verb by five forms; the article, the genitive, the
imperfect and the first person plural follow from them.
"""

from collections.abc import Iterable
from typing import NamedTuple


def entries(table: str) -> list[tuple[str, ...]]:
    """Return the forms of each entry of a table."""
    return [tuple(entry.split()) for entry in table.replace("\n", " ").split(",") if entry.strip()]


def names(table: str) -> tuple[str, ...]:
    """Return the entries of a table whole, for names and phrases of several words."""
    return tuple(" ".join(forms) for forms in entries(table))


class Noun(NamedTuple):
    """A noun; ``gender`` is m, f or n (masculine in the singular, feminine in the plural)."""

    singular: str
    plural: str
    gender: str
    meaning: str

    def agreement(self, plural: bool) -> str:
        """Return gender and number of the words that agree with it: ms, fs, mp or fp."""
        feminine = self.gender == "f" or (self.gender == "n" and plural)
        return ("f" if feminine else "m") + ("p" if plural else "s")

    def definite(self, plural: bool) -> str:
        """Return the form with the article: băiatul, fratele, casa, perdeaua; băieții, casele."""
        if plural:
            return self.plural + ("i" if self.gender == "m" else "le")
        if self.gender != "f":
            return self.singular + (
                "l" if self.singular.endswith("u") else "le" if self.singular.endswith("e") else "ul"
            )
        if self.singular.endswith("ă") or self.singular.endswith("ie"):
            return self.singular[:-1] + "a"
        return self.singular + ("a" if self.singular.endswith("e") else "ua")

    def genitive(self) -> str:
        """Return the definite genitive singular: băiatului, fratelui, casei, cărții, farmaciei."""
        if self.gender != "f":
            return self.definite(plural=False).removesuffix("e") + "ui"
        return self.plural[:-1] + "ei" if self.plural.endswith("ii") else self.plural + "i"


class Verb(NamedTuple):
    """A verb; ``takes`` are the meanings of its objects."""

    infinitive: str
    first: str
    third: str
    third_plural: str
    participle: str
    takes: tuple[str, ...] = ()

    def first_plural(self) -> str:
        """Return the present of the first person plural: citim, vedem, cumpărăm, coborâm."""
        endings = {"a": "ăm", "e": "em", "i": "im", "î": "âm"}
        stem = self.infinitive[:-2] + "e" if self.infinitive.endswith("ea") else self.infinitive
        return stem[:-1] + endings[stem[-1]]

    def imperfect(self) -> str:
        """Return the imperfect of the third person singular: citea, vedea, scria, construia, cumpăra, cobora."""
        stem, ending = self.infinitive[:-1], self.infinitive[-1]
        if ending in "aî":
            return stem + "a"
        if ending == "e":
            return stem + ("a" if stem.endswith("i") else "ea")
        return stem + ("ia" if stem[-1] in "uă" else "ea")


# Singular and plural, by meaning and gender (m, f; n: masculine in the singular, feminine in the plural).
_NOUNS = {
    ("person", "m"): """
băiat băieți, copil copii, profesor profesori, medic medici, student studenți, vecin vecini, fermier fermieri, elev elevi,
scriitor scriitori, prieten prieteni, actor actori, pictor pictori, inginer ingineri, frate frați, șofer șoferi, ghid ghizi,
jurnalist jurnaliști, avocat avocați, bucătar bucătari, grădinar grădinari, muzician muzicieni, pescar pescari, primar primari,
ministru miniștri, polițist polițiști, pompier pompieri, turist turiști, brutar brutari, croitor croitori, judecător judecători,
cercetător cercetători, antrenor antrenori, sportiv sportivi, poet poeți, regizor regizori,
dentist dentiști, farmacist farmaciști, tâmplar tâmplari, cioban ciobani, oaspete oaspeți, negustor negustori, nepot nepoți,
vânzător vânzători, muncitor muncitori, văr veri, rege regi, prinț prinți, soldat soldați, marinar marinari, coleg colegi,
doctor doctori, amic amici, dascăl dascăli, școlar școlari, flăcău flăcăi""",
    ("person", "f"): """
fată fete, elevă eleve, studentă studente, profesoară profesoare, vecină vecine, prietenă prietene, soră surori, mamă mame,
bunică bunici, doctoriță doctorițe, actriță actrițe, cântăreață cântărețe, femeie femei, fetiță fetițe, jurnalistă jurnaliste,
ingineră inginere, avocată avocate, regină regine, prințesă prințese, bucătăreasă bucătărese, croitoreasă croitorese,
poetă poete, pictoriță pictorițe, colegă colege, mătușă mătuși, nepoată nepoate, verișoară verișoare, asistentă asistente,
farmacistă farmaciste, turistă turiste, sportivă sportive, doamnă doamne""",
    ("animal", "m"): """
câine câini, cal cai, urs urși, lup lupi, iepure iepuri, cocoș cocoși, motan motani, măgar măgari, fluture fluturi, pește pești,
leu lei, elefant elefanți, vultur vulturi, cerb cerbi, berbec berbeci, vițel viței, purcel purcei, miel miei, papagal papagali""",
    ("animal", "f"): """
pisică pisici, vacă vaci, capră capre, oaie oi, găină găini, rață rațe, vulpe vulpi, pasăre păsări, veveriță veverițe,
albină albine, furnică furnici, broască broaște, barză berze, vrabie vrăbii, iapă iepe, căprioară căprioare, gâscă gâște,
maimuță maimuțe, rândunică rândunici""",
    ("text", "n"): """
ziar ziare, roman romane, articol articole, mesaj mesaje, caiet caiete, dicționar dicționare, jurnal jurnale, manual manuale,
raport rapoarte, contract contracte, poem poeme, text texte, basm basme, document documente, bilet bilete""",
    ("text", "f"): """
carte cărți, scrisoare scrisori, poveste povești, revistă reviste, poezie poezii, lecție lecții, telegramă telegrame,
listă liste, hartă hărți, felicitare felicitări, rețetă rețete, nuvelă nuvele, cronică cronici, epistolă epistole,
gazetă gazete""",
    ("food", "m"): """
morcov morcovi, castravete castraveți, covrig covrigi, biscuit biscuiți, cârnat cârnați""",
    ("food", "n"): """
măr mere, ou ouă, desert deserturi, tort torturi, sandviș sandvișuri, fruct fructe""",
    ("food", "f"): """
pâine pâini, omletă omlete, ciorbă ciorbe, plăcintă plăcinte, salată salate, prăjitură prăjituri, pară pere,
portocală portocale, ceapă cepe, cireașă cireșe, căpșună căpșuni, nucă nuci, înghețată înghețate, friptură fripturi""",
    ("object", "n"): """
telefon telefoane, tablou tablouri, scaun scaune, ceas ceasuri, birou birouri, dulap dulapuri, covor covoare, creion creioane,
calculator calculatoare, pahar pahare, tricou tricouri, palton paltoane, inel inele, cadou cadouri, instrument instrumente,
pian piane, cuțit cuțite, pat paturi, coș coșuri, rucsac rucsacuri, vas vase, ghiozdan ghiozdane, fotoliu fotolii,
autobuz autobuze, microfon microfoane, automobil automobile, dar daruri, veșmânt veșminte""",
    ("object", "f"): """
mașină mașini, bicicletă biciclete, floare flori, fereastră ferestre, ușă uși, masă mese, lampă lămpi, oglindă oglinzi,
cheie chei, geantă genți, rochie rochii, cămașă cămăși, pălărie pălării, umbrelă umbrele, vioară viori, chitară chitare,
minge mingi, jucărie jucării, haină haine, cană căni, farfurie farfurii, lingură linguri, perdea perdele, barcă bărci,
cutie cutii, fotografie fotografii, statuie statui, lumânare lumânări, pernă perne, pictură picturi""",
    ("place", "n"): """
oraș orașe, sat sate, parc parcuri, spital spitale, magazin magazine, teatru teatre, muzeu muzee, restaurant restaurante,
hotel hoteluri, castel castele, aeroport aeroporturi, port porturi, stadion stadioane, cinematograf cinematografe, liceu licee,
laborator laboratoare, atelier ateliere, râu râuri, lac lacuri, deal dealuri, câmp câmpuri, pod poduri, turn turnuri,
cartier cartiere, centru centre, institut institute, cătun cătune""",
    ("place", "f"): """
casă case, școală școli, grădină grădini, pădure păduri, bibliotecă biblioteci, piață piețe, cameră camere, stradă străzi,
gară gări, fabrică fabrici, bucătărie bucătării, livadă livezi, biserică biserici, universitate universități, vale văi,
plajă plaje, insulă insule, curte curți, cafenea cafenele, farmacie farmacii, fermă ferme, librărie librării,
brutărie brutării, mănăstire mănăstiri, peșteră peșteri, galerie galerii, grădiniță grădinițe, cetate cetăți,
locuință locuințe, prăvălie prăvălii, uliță ulițe""",
    ("matter", "n"): """
plan planuri, proiect proiecte, subiect subiecte, secret secrete, vis vise, joc jocuri, concert concerte, film filme,
spectacol spectacole, meci meciuri, concurs concursuri, drum drumuri, obicei obiceiuri, program programe, mister mistere,
răspuns răspunsuri, cântec cântece, dans dansuri""",
    ("matter", "f"): """
problemă probleme, idee idei, întrebare întrebări, soluție soluții, aventură aventuri, călătorie călătorii, decizie decizii,
amintire amintiri, petrecere petreceri, greșeală greșeli, legendă legende, melodie melodii, piesă piese, victorie victorii,
expoziție expoziții, tradiție tradiții, glumă glume, veste vești, surpriză surprize, eroare erori, taină taine, știre știri""",
}

# Infinitive, present of the 1st and 3rd person singular and of the 3rd plural, participle; by the meanings of the object.
_TRANSITIVE = {
    ("text",): """
citi citesc citește citesc citit, scrie scriu scrie scriu scris, traduce traduc traduce traduc tradus,
publica public publică publică publicat, semna semnez semnează semnează semnat, tipări tipăresc tipărește tipăresc tipărit""",
    ("food",): """
mânca mănânc mănâncă mănâncă mâncat, găti gătesc gătește gătesc gătit, gusta gust gustă gustă gustat,
servi servesc servește servesc servit, pregăti pregătesc pregătește pregătesc pregătit,
prepara prepar prepară prepară preparat""",
    ("text", "food", "object"): """
cumpăra cumpăr cumpără cumpără cumpărat, vinde vând vinde vând vândut, plăti plătesc plătește plătesc plătit,
primi primesc primește primesc primit, trimite trimit trimite trimit trimis, aduce aduc aduce aduc adus,
căuta caut caută caută căutat, ascunde ascund ascunde ascund ascuns, găsi găsesc găsește găsesc găsit,
pierde pierd pierde pierd pierdut, alege aleg alege aleg ales, achiziționa achiziționez achiziționează achiziționează achiziționat,
căpăta capăt capătă capătă căpătat, descoperi descopăr descoperă descoperă descoperit,
selecta selectez selectează selectează selectat""",
    ("object",): """
repara repar repară repară reparat, folosi folosesc folosește folosesc folosit, spăla spăl spală spală spălat,
vopsi vopsesc vopsește vopsesc vopsit, muta mut mută mută mutat, desena desenez desenează desenează desenat,
utiliza utilizez utilizează utilizează utilizat, șterge șterg șterge șterg șters""",
    ("person", "animal", "object", "place"): """
vedea văd vede văd văzut, privi privesc privește privesc privit, admira admir admiră admiră admirat,
picta pictez pictează pictează pictat, zări zăresc zărește zăresc zărit,
contempla contemplu contemplă contemplă contemplat""",
    ("place",): """
vizita vizitez vizitează vizitează vizitat, părăsi părăsesc părăsește părăsesc părăsit,
construi construiesc construiește construiesc construit, curăța curăț curăță curăță curățat,
abandona abandonez abandonează abandonează abandonat, clădi clădesc clădește clădesc clădit""",
    ("person",): """
ajuta ajut ajută ajută ajutat, aștepta aștept așteaptă așteaptă așteptat, întreba întreb întreabă întreabă întrebat,
chema chem cheamă cheamă chemat, saluta salut salută salută salutat, felicita felicit felicită felicită felicitat,
întâlni întâlnesc întâlnește întâlnesc întâlnit, sprijini sprijin sprijină sprijină sprijinit""",
    ("animal",): """
hrăni hrănesc hrănește hrănesc hrănit, prinde prind prinde prind prins, îngriji îngrijesc îngrijește îngrijesc îngrijit,
urmări urmăresc urmărește urmăresc urmărit""",
    ("matter",): """
explica explic explică explică explicat, descrie descriu descrie descriu descris, uita uit uită uită uitat,
discuta discut discută discută discutat, organiza organizez organizează organizează organizat,
rezolva rezolv rezolvă rezolvă rezolvat, anunța anunț anunță anunță anunțat, critica critic critică critică criticat,
prefera prefer preferă preferă preferat, povesti povestesc povestește povestesc povestit,
înțelege înțeleg înțelege înțeleg înțeles, schimba schimb schimbă schimbă schimbat,
lămuri lămuresc lămurește lămuresc lămurit, dezbate dezbat dezbate dezbat dezbătut""",
}
_MOTION = """
merge merg merge merg mers, ajunge ajung ajunge ajung ajuns, fugi fug fuge fug fugit, veni vin vine vin venit,
pleca plec pleacă pleacă plecat, intra intru intră intră intrat, coborî cobor coboară coboară coborât, urca urc urcă urcă urcat,
alerga alerg aleargă aleargă alergat, călători călătoresc călătorește călătoresc călătorit, trece trec trece trec trecut"""
_REST = """
locui locuiesc locuiește locuiesc locuit, lucra lucrez lucrează lucrează lucrat, dormi dorm doarme dorm dormit,
cânta cânt cântă cântă cântat, rămâne rămân rămâne rămân rămas, râde râd râde râd râs, plânge plâng plânge plâng plâns,
trăi trăiesc trăiește trăiesc trăit, dansa dansez dansează dansează dansat, zâmbi zâmbesc zâmbește zâmbesc zâmbit"""
_SAYING = """
spune spun spune spun spus, crede cred crede cred crezut, observa observ observă observă observat,
afirma afirm afirmă afirmă afirmat, visa visez visează visează visat, zice zic zice zic zis"""

# Masculine and feminine singular, masculine and feminine plural; by what they are said of.
_ANYTHING = """
bun bună buni bune, frumos frumoasă frumoși frumoase, mic mică mici mici, mare mare mari mari, nou nouă noi noi,
vechi veche vechi vechi, cunoscut cunoscută cunoscuți cunoscute, ciudat ciudată ciudați ciudate"""
_LIVING = """
tânăr tânără tineri tinere, bătrân bătrână bătrâni bătrâne, vesel veselă veseli vesele, trist tristă triști triste,
obosit obosită obosiți obosite, curajos curajoasă curajoși curajoase, flămând flămândă flămânzi flămânde,
liniștit liniștită liniștiți liniștite, rapid rapidă rapizi rapide"""
_HUMAN = """
harnic harnică harnici harnice, leneș leneșă leneși leneșe, celebru celebră celebri celebre, atent atentă atenți atente,
cinstit cinstită cinstiți cinstite, politicos politicoasă politicoși politicoase, bogat bogată bogați bogate,
sărac săracă săraci sărace, înalt înaltă înalți înalte, modest modestă modești modeste"""
_CONCRETE = """
scump scumpă scumpi scumpe, ieftin ieftină ieftini ieftine, alb albă albi albe, negru neagră negri negre,
roșu roșie roșii roșii, galben galbenă galbeni galbene, ușor ușoară ușori ușoare, greu grea grei grele,
curat curată curați curate, murdar murdară murdari murdare, modern modernă moderni moderne, rar rară rari rare"""
_INTERESTING = """
interesant interesantă interesanți interesante, important importantă importanți importante, lung lungă lungi lungi,
scurt scurtă scurți scurte, util utilă utili utile, dificil dificilă dificili dificile, simplu simplă simpli simple,
neașteptat neașteptată neașteptați neașteptate"""
_ADJECTIVES = {
    "person": ",".join((_ANYTHING, _LIVING, _HUMAN)),
    "animal": ",".join((_ANYTHING, _LIVING)),
    "object": ",".join((_ANYTHING, _CONCRETE)),
    "text": ",".join((_ANYTHING, _INTERESTING)),
    "matter": ",".join((_ANYTHING, _INTERESTING)),
    "food": """
bun bună buni bune, mic mică mici mici, mare mare mari mari, proaspăt proaspătă proaspeți proaspete, dulce dulce dulci dulci,
gustos gustoasă gustoși gustoase, amar amară amari amare, sărat sărată sărați sărate, cald caldă calzi calde,
rece rece reci reci, ieftin ieftină ieftini ieftine""",
    "place": f"""{_ANYTHING},
aglomerat aglomerată aglomerați aglomerate, luminos luminoasă luminoși luminoase, larg largă largi largi,
întunecat întunecată întunecați întunecate, îngust îngustă înguști înguste, modern modernă moderni moderne,
curat curată curați curate, liniștit liniștită liniștiți liniștite""",
}


def _verbs(table: str, takes: tuple[str, ...] = ()) -> tuple[Verb, ...]:
    return tuple(Verb(*forms, takes) for forms in entries(table))


def _nouns(meanings: Iterable[str]) -> dict[str, tuple[Noun, ...]]:
    return {
        meaning: tuple(
            Noun(*forms, gender, meaning)
            for (other, gender), table in _NOUNS.items()
            if other == meaning
            for forms in entries(table)
        )
        for meaning in meanings
    }


NOUNS = _nouns(dict.fromkeys(meaning for meaning, _ in _NOUNS))
TRANSITIVE = tuple(_verbs(table, takes) for takes, table in _TRANSITIVE.items())
MOTION, REST, SAYING = _verbs(_MOTION), _verbs(_REST), _verbs(_SAYING)
ADJECTIVES = {meaning: entries(table) for meaning, table in _ADJECTIVES.items()}

# Closed classes, each word with its UPOS and XPOS tag.
DETERMINERS = {
    "ms": (*[("un", "DET", "Timsr")] * 4, ("acest", "DET", "Dd3msr---e"), ("fiecare", "DET", "Di3-sr---e")),
    "fs": (*[("o", "DET", "Tifsr")] * 4, ("această", "DET", "Dd3fsr---e"), ("fiecare", "DET", "Di3-sr---e")),
    "mp": (("doi", "NUM", "Mcmp-l"),),
    "fp": (("două", "NUM", "Mcfp-l"),),
}
POSSESSIVES = {"ms": ("meu", "DET", "Ds1ms-s"), "fs": ("mea", "DET", "Ds1fsrs")}
PRONOUNS = {"ms": "el", "fs": "ea", "mp": "ei", "fp": "ele"}
MANNER = names("repede, încet, bine, imediat, îndată, iarăși, îndelung, degeaba, oricum, totuși")
TIME = {
    "present": names("astăzi, acum, mereu, adesea, uneori, zilnic, rareori"),
    "perfect": names("ieri, aseară, odată, deja, recent, alaltăieri"),
    "imperfect": names("atunci, odinioară, mereu, adesea, uneori"),
    "future": names("mâine, curând, diseară, poimâine"),
    "can": names("astăzi, acum, mereu, uneori"),
}
CONJUNCTIONS = (
    ("și", "CCONJ", "Crssp"),
    ("dar", "CCONJ", "Ccssp"),
    ("iar", "CCONJ", "Ccssp"),
    ("însă", "CCONJ", "Ccssp"),
)
SUBORDINATORS = (("deoarece", "SCONJ", "Csssp"), ("fiindcă", "SCONJ", "Csssp"), ("deși", "SCONJ", "Csssp"), ("dacă", "SCONJ", "Csssp"))  # fmt: skip
CONTRACTED = {"în": "într-", "din": "dintr-", "prin": "printr-"}  # before un, o
TOWARDS, WITHIN = ("spre", "la", "din", "prin", "lângă"), ("în", "lângă", "la")

FIRST_NAMES = names("""
Ion, Maria, Andrei, Elena, Mihai, Ana, Ștefan, Ioana, Vasile, Cristina, Radu, Ileana, Gheorghe, Irina, Alexandru, Daniela,
Nicolae, Simona, Cătălin, Raluca, Dumitra, Florin, Anca, Bogdan, Mădălina, Sorin, Lăcrămioara, Tudor, Ruxandra""")
LAST_NAMES = names("""
Popescu, Ionescu, Dumitrescu, Stan, Munteanu, Rusu, Țurcanu, Moraru, Georgescu, Lupu, Șerban, Călinescu, Bălan, Vieru,
Roman, Oltean, Văcărescu, Enache, Sârbu, Chiriac, Mureșan, Brătianu, Ciobanu, Dobre""")
CITIES = names("""
București, Cluj-Napoca, Iași, Chișinău, Brașov, Timișoara, Bălți, Constanța, Sibiu, Oradea, Galați, Ploiești, Craiova, Arad,
Pitești, Bacău, Suceava, Roman, Tulcea, Cahul, Soroca, Ungheni, Baia Mare, Târgu Mureș, Alba Iulia, Piatra Neamț""")
COUNTRIES = names(
    "România, Franța, Germania, Italia, Spania, Ungaria, Bulgaria, Ucraina, Grecia, Polonia, Statele Unite"
)
NATURE = names("""
Marea Neagră, Marea Egee, Munții Făgăraș, Munții Apuseni, Delta Dunării, Lacul Snagov, Valea Prahovei, Câmpia Română,
Fluviul Dunărea, Râul Olt, Râul Prut, Muntele Ceahlău, Podișul Moldovei, Vârful Omu, Cheile Bicazului, Pădurea Băneasa""")
ORGANISATIONS = names("""
Petrom, Academia Română, Banca Națională, Radio România, Moldtelecom, Teatrul Național, Uniunea Scriitorilor,
Ministerul Educației, Ministerul Sănătății, Curtea de Conturi, Crucea Roșie, Consiliul Europei, Parlamentul European""")
ORGANISATION_OF = names(
    "Universitatea din, Primăria, Dinamo, Politehnica, Spitalul Județean, Opera Română din, Gazeta de"
)
MONTHS = names("""
ianuarie, februarie, martie, aprilie, mai, iunie, iulie, august, septembrie, octombrie, noiembrie, decembrie""")
DAYS = names("luni, marți, miercuri, joi, vineri, sâmbătă, duminică")
NUMERALS = names("trei, patru, cinci, șase, șapte, opt, zece")
LARGE_NUMERALS = names("douăzeci, treizeci, patruzeci, cincizeci, o sută, două sute")
CURRENCIES = names("lei, euro, dolari, lei moldovenești, milioane de lei, milioane de euro")
PEOPLES = names(
    "română, franceză, germană, italiană, maghiară, ucraineană, poloneză, greacă, ortodoxă, liberală, socialistă"
)
LANGUAGES = names("limba română, limba franceză, limba germană, limba latină, engleză, spaniolă, rusă, maghiară")
EVENTS = names("""
Cupa României, Cupa Mondială, Raliul Dunării, Campionatul European, Festivalul Enescu, Târgul Gaudeamus, Salonul Auto""")
WORKS = names("""
Luceafărul, Amintiri din copilărie, Baltagul, O scrisoare pierdută, Moromeții, Ion, Enigma Otiliei, Miorița, Harap-Alb""")
ORDINALS = names("prima, a doua, a treia, a patra, a cincea, a zecea")

# Words in braces become entities of that class, the rest is outside.
ENTITY_OPENINGS = names(
    "se știe că, presa scrie că, am aflat că, astăzi, de altfel, ulterior, în același timp, din păcate"
)
ENTITY_FORMS = """
{PERSON} locuiește în {GPE} din {DATETIME} .
{ORG} a deschis {NUMERIC} magazine în {GPE} .
pe {DATETIME} {PERSON} a vizitat {ORG} .
{PERSON} și {PERSON} au mers împreună spre {LOC} .
trenul din {GPE} ajunge lângă {LOC} după {NUMERIC} ore .
la {ORG} , {PERSON} a prezentat {WORK_OF_ART} pe {DATETIME} .
în {GPE} trăiesc {NUMERIC} familii .
lângă {LOC} a fost găsită o scrisoare veche din {DATETIME} .
{ORG} a plătit {MONEY} pentru o clădire din {GPE} .
biletul costă {MONEY} , a anunțat {ORG} .
delegația {NAT_REL_POL} a ajuns pe {DATETIME} în {GPE} .
{PERSON} vorbește {LANGUAGE} și {LANGUAGE} .
{PERSON} a câștigat {EVENT} pentru {ORDINAL} oară .
{EVENT} începe pe {DATETIME} în {GPE} .
romanul {WORK_OF_ART} a fost tradus în {LANGUAGE} .
{PERSON} a citit {WORK_OF_ART} de {NUMERIC} ori .
echipa {NAT_REL_POL} a învins cu {NUMERIC} puncte la {EVENT} .
{ORDINAL} ediție a avut loc pe {DATETIME} în {GPE} .
comunitatea {NAT_REL_POL} din {GPE} a primit {MONEY} de la {ORG} .
{PERSON} lucrează la {ORG} din {DATETIME} .
pe {DATETIME} , {ORG} a primit {NUMERIC} scrisori din {GPE} .
drumul dintre {GPE} și {GPE} trece pe lângă {LOC} .
granița dintre {GPE} și {GPE} trece prin {LOC} .
{ORG} spune că {NUMERIC} turiști au văzut {LOC} .
cursul de {LANGUAGE} din {GPE} costă {MONEY} .
{PERSON} , {PERSON} și {PERSON} au fondat {ORG} .
""".strip().splitlines()  # fmt: skip

# Pairs that mean the same; each word stands in a table above.
_SYNONYMS = """
medic doctor, prieten amic, profesor dascăl, elev școlar, băiat flăcău, mașină automobil, scrisoare epistolă, tablou pictură,
poveste basm, casă locuință, sat cătun, magazin prăvălie, stradă uliță, ziar gazetă, cadou dar, haină veșmânt, greșeală eroare,
secret taină, veste știre, vedea zări, cumpăra achiziționa, găsi descoperi, alege selecta, primi căpăta, pregăti prepara,
explica lămuri, admira contempla, părăsi abandona, construi clădi, ajuta sprijini, discuta dezbate, folosi utiliza"""

SYNONYMS = {a: b for pair in entries(_SYNONYMS) for a, b in (pair, pair[::-1])}

# Masculine and feminine singular of judgements, by strength.
JUDGEMENTS = {
    "best": """
excelent excelentă, minunat minunată, perfect perfectă, superb superbă, impecabil impecabilă, extraordinar extraordinară,
fantastic fantastică""",
    "good": "bun bună, plăcut plăcută, util utilă, decent decentă, reușit reușită, practic practică, corect corectă",
    "weak": "slab slabă, mediocru mediocră, dezamăgitor dezamăgitoare, fragil fragilă, incomod incomodă, banal banală",
    "worst": """
groaznic groaznică, oribil oribilă, jalnic jalnică, inutilizabil inutilizabilă, îngrozitor îngrozitoare,
mizerabil mizerabilă, execrabil execrabilă""",
}
PRODUCTS = {
    "m": names("""telefonul, aspiratorul, televizorul, fierul de călcat, ceasul, laptopul, cuptorul, aparatul foto, rucsacul, scaunul,
ventilatorul, mixerul, monitorul, routerul, covorul"""),
    "f": names("""cartea, rochia, geanta, tableta, tastatura, imprimanta, lampa, bicicleta, husa, jucăria, perna, cafetiera,
trotineta, boxa, brățara"""),
}  # fmt: skip
ASPECTS = {
    "m": names("ecranul, sunetul, ambalajul, prețul, materialul, manualul, cablul, designul, curierul, aspectul"),
    "f": names("bateria, livrarea, culoarea, calitatea, instalarea, garanția, greutatea, cutia, mărimea, finisarea"),
}
TITLES = {
    "positive": names("Mulțumit, Recomand, Îmi place, Sunt încântată, O alegere bună, Merită, Da"),
    "negative": names("Dezamăgit, Nu recomand, Nu îmi place, Sunt supărată, O alegere proastă, Nu merită, Nu"),
    "neutral": names(
        "Părerea mea, După o lună, Recenzie, Primele impresii, Ce cred, Despre produs, Pe scurt, Comanda mea"
    ),
}
BACKGROUND = names("""
am făcut comanda acum o lună, livrarea a durat două zile, am cerut culoarea neagră, este pentru mama, este pentru birou,
este un cadou pentru fratele meu, am citit multe recenzii, este a doua comandă, am comandat de pe site, am plătit cu cardul,
pachetul a venit luni, alegerea a fost a soției mele, am avut reducere, am comandat două bucăți, o folosim zilnic în familie""")
ENDINGS = names(
    "asta este părerea mea, vă spun din experiență, mai scriu peste o lună, am anunțat și magazinul, să știți, pe bune, zău"
)

# Words of Romania and of Moldova for the same thing, by the sentences that they fit. A text uses the word of the other side
# seldom for strong marks and often for weak ones.
MARKS = {
    ("strong", "goods"): """
pepeni harbuji, cartofi barabule, struguri poamă, prune perje, porumb păpușoi, varză curechi, supă zeamă,
sarmale găluște""",
    ("strong", "things"): "microbuze rutiere, ghete ciubote, porumbei hulubi",
    ("strong", "unit"): "județ raion",
    ("strong", "council"): "județean raional",
    ("weak", "goods"): "dovleci bostani, gutui gutâi",
    ("weak", "things"): "zăpadă omăt, noroi glod, tauri buhai, prosoape ștergare",
}
MARK_FORMS = {
    "goods": """
la piața din $NE$ se vinde marfă bună , mai ales {} .
$NE$ a cumpărat {} pentru sărbători .
fără {} nu există masă în $NE$ , spune $NE$ .
în $NE$ am mâncat {} la masa de prânz .
prețul pentru {} a crescut în $NE$ cu {number} la sută .""",
    "things": """
în $NE$ am văzut {} peste tot .
$NE$ a vorbit despre {} și despre drumuri .
locuitorii din $NE$ spun că au {} la poartă .
pe strada $NE$ dai de {} , scrie $NE$ .
fotografia cu {} din $NE$ are {number} de aprecieri .""",
    "unit": """
în fiecare {} se repară {number} de drumuri , a declarat $NE$ .
un {} vecin a primit bani pentru școala din $NE$ .
$NE$ conduce acest {} de {number} de luni .""",
    "council": """
consiliul {} a votat bugetul propus de $NE$ .
spitalul {} din $NE$ are {number} de paturi .
$NE$ este consilier {} din anul trecut .""",
}
