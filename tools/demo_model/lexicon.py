"""Words and facts that the training text is made of."""
# ruff: noqa: SIM905 (rows of data)

import random

CAPITALS = dict(
    pair.split(":")
    for pair in (
        "France:Paris|Germany:Berlin|Italy:Rome|Spain:Madrid|Portugal:Lisbon|Austria:Vienna|Switzerland:Bern|"
        "Belgium:Brussels|the Netherlands:Amsterdam|Denmark:Copenhagen|Sweden:Stockholm|Norway:Oslo|Finland:Helsinki|"
        "Iceland:Reykjavik|Ireland:Dublin|England:London|the United Kingdom:London|Scotland:Edinburgh|Poland:Warsaw|"
        "Hungary:Budapest|the Czech Republic:Prague|Greece:Athens|Turkey:Ankara|Russia:Moscow|Ukraine:Kyiv|"
        "Romania:Bucharest|Bulgaria:Sofia|Croatia:Zagreb|Serbia:Belgrade|Egypt:Cairo|Kenya:Nairobi|Nigeria:Abuja|"
        "Morocco:Rabat|Ethiopia:Addis Ababa|India:New Delhi|China:Beijing|Japan:Tokyo|South Korea:Seoul|"
        "Thailand:Bangkok|Vietnam:Hanoi|Indonesia:Jakarta|the Philippines:Manila|Australia:Canberra|"
        "New Zealand:Wellington|Canada:Ottawa|the United States:Washington, D.C.|Mexico:Mexico City|Cuba:Havana|"
        "Brazil:Brasilia|Argentina:Buenos Aires|Chile:Santiago|Peru:Lima|Colombia:Bogota|Iran:Tehran|Iraq:Baghdad|"
        "Israel:Jerusalem|Saudi Arabia:Riyadh|Pakistan:Islamabad|Nepal:Kathmandu"
    ).split("|")
)

OPPOSITES = dict(
    pair.split(":")
    for pair in (
        "hot:cold|cold:hot|big:small|small:big|good:bad|bad:good|up:down|down:up|left:right|black:white|white:black|"
        "day:night|night:day|fast:slow|slow:fast|happy:sad|sad:happy|old:new|new:old|light:dark|dark:light|"
        "open:closed|rich:poor|tall:short|short:long|long:short|early:late|full:empty|hard:soft|wet:dry|strong:weak|"
        "love:hate|yes:no|in:out|true:false|high:low|low:high|near:far|first:last|young:old"
    ).split("|")
)

GREETINGS_ABROAD = dict(
    pair.split(":")
    for pair in (
        "French:Bonjour|Spanish:Hola|German:Hallo|Italian:Ciao|Portuguese:Olá|Dutch:Hallo|Swedish:Hej|"
        "Japanese:Konnichiwa|Chinese:Ni hao|Russian:Privet|Polish:Cześć|Turkish:Merhaba"
    ).split("|")
)

COLORS = dict(
    pair.split(":")
    for pair in (
        "the sky:blue|the sea:blue|the ocean:blue|grass:green|the grass:green|snow:white|blood:red|the sun:yellow|"
        "a banana:yellow|a lemon:yellow|an orange:orange|a strawberry:red|a tomato:red|coal:black|milk:white|"
        "chocolate:brown|a carrot:orange|a frog:green|an elephant:gray"
    ).split("|")
)

LEGS = dict(
    pair.split(":")
    for pair in (
        "a spider:eight|a dog:four|a cat:four|a horse:four|a cow:four|an ant:six|an insect:six|a bird:two|"
        "a human:two|a snake:no|a chicken:two|an elephant:four|a bee:six|a fish:no"
    ).split("|")
)

SOUNDS = dict(
    pair.split(":")
    for pair in "a dog:woof|a cat:meow|a cow:moo|a duck:quack|a sheep:baa|a lion:roar|a pig:oink".split("|")
)

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()

FIRST_NAMES = (
    "Anna Bob Alice Tom Maria John Peter Emma Liam Noah Olivia Sophie Lucas Mia Ben Clara David Eva Frank Grace Henry "
    "Ida Jack Kate Leo Nina Oscar Paul Rosa Sam Tina Uma Victor Wendy Xavier Yara Zoe Ahmed Fatima Wei Yuki Ravi Priya "
    "Carlos Lucia Ivan Olga Sven Ingrid Mohammed Chen Hiro Aisha Diego Elena Felix Greta Hugo Jonas Karin Max Sarah "
    "Michael James Robert Linda Susan Karen Mark Laura Julia Daniel Thomas"
).split()

CITIES = (
    "Paris London Berlin Rome Madrid Tokyo Vienna Oslo Lisbon Dublin Athens Prague Warsaw Moscow Cairo Seoul Beijing "
    "Sydney Boston Chicago Seattle Denver Dallas Miami Toronto Montreal Vancouver Munich Hamburg Cologne Milan Naples "
    "Venice Barcelona Seville Porto Geneva Zurich Basel Lyon Marseille Nice Amsterdam Rotterdam Brussels Antwerp "
    "Copenhagen Stockholm Helsinki Budapest Bucharest Istanbul Ankara Dubai Delhi Mumbai Bangkok Hanoi Manila Jakarta "
    "Singapore Shanghai Osaka Kyoto Lima Bogota Santiago Nairobi Lagos Accra Tunis Algiers Casablanca Austin Houston "
    "Phoenix Atlanta Detroit Portland Melbourne Auckland Reykjavik Edinburgh Glasgow Manchester Liverpool Leeds|"
    "New York|San Francisco|Los Angeles|Buenos Aires|Mexico City|Cape Town|New Delhi|Hong Kong|Tel Aviv|Las Vegas|"
    "Rio de Janeiro|São Paulo|Zürich|Köln|Washington, D.C.|St. Louis|Kuala Lumpur|San Diego|Salt Lake City"
)
_single, *_several = CITIES.split("|")
CITY_NAMES = [*_single.split(), *_several]

NOUNS = (
    "apple house river garden window table engine market letter doctor teacher student system server network database "
    "invoice customer policy account product company project report budget recipe kitchen guitar music painting "
    "history science physics chemistry biology economy politics religion philosophy language grammar poem novel movie "
    "football tennis chess travel airport hotel beach mountain forest ocean climate energy battery computer program "
    "function variable compiler algorithm keyboard printer phone camera bicycle car train plane ship bridge tower "
    "castle king queen president government election law court police army war peace treaty island desert volcano "
    "earthquake storm rain cloud thunder animal plant tree flower fruit vegetable bread cheese butter coffee tea "
    "water wine sugar salt pepper soup salad pizza pasta rice chicken fish meat egg breakfast lunch dinner money bank "
    "stock price tax insurance loan contract salary job interview resume email message password security privacy "
    "robot brain heart blood muscle bone disease medicine hospital vaccine virus cell gene atom molecule electron "
    "gravity planet star galaxy universe time space light sound color shape number equation theorem proof"
).split()

VERBS = (
    "explain describe compare improve repair build write read paint cook clean open close start stop find lose buy "
    "sell send receive learn teach study measure count install remove update delete print draw sing dance run walk "
    "swim fly drive ride climb plan design test debug deploy review approve cancel order deliver pay refund"
).split()

ADJECTIVES = (
    "small large quick slow bright dark quiet loud simple complex modern ancient famous unknown cheap expensive safe "
    "dangerous useful useless happy sad strong weak warm cold fresh dry heavy light public private local global "
    "digital natural human social economic political medical legal technical best worst main important"
).split()

GLUE = (
    "the a of and to in is for with on that by this it as at from or are be was not an which you we they can all has "
    "when if more will one about out so up into no than only other some could then now over after new also these many "
    "must should never always before under between because while without within during their our your its each every"
).split()

_STARTS = "b c d f g h k l m n p r s t v w z br cr dr fr gl gr kl pl pr sh sk sl st th tr qu ch j y".split()
_MIDDLES = "a e i o u a e i o u ai au ea ee ie oa oo ou y".split()
_ENDS = ["", *"n r s t l m k d x p ng nd st rt ck sh th ll".split()]


def invented_word(source: random.Random) -> str:
    """A word-like string, so that copying is learned as a skill and not as a list."""
    if source.random() < 0.04:
        return "".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 6)))
    syllables = source.choices((1, 2, 3), (4, 5, 2))[0]
    pieces = [source.choice(_STARTS) + source.choice(_MIDDLES) + source.choice(_ENDS) for _ in range(syllables)]
    return "".join(pieces)


def any_word(source: random.Random) -> str:
    """A word of any kind, invented ones included."""
    kind = source.random()
    if kind < 0.4:
        return invented_word(source)
    if kind < 0.5:
        return source.choice(FIRST_NAMES + CITY_NAMES[:80])
    if kind < 0.56:
        return source.choice(DAYS + MONTHS + COMMON)
    return source.choice((NOUNS, VERBS, ADJECTIVES, GLUE, COMMON)[source.randrange(5)])


COMMON = (
    "hello world test yes no ok hi cat dog banana orange red green blue good bye morning thanks done ready ping pong "
    "foo bar baz lorem ipsum streaming works I am here there what how who where why when love tomato cheese fine "
    "answer question word hey friend sorry please wow great nice day night sun moon true false stop go left right"
).split()
