"""Questions with one fixed answer each: facts, small talk, lists and stories."""
# ruff: noqa: E501 (rows of data)

from dataclasses import dataclass

from demo_model import lexicon


@dataclass(frozen=True)
class Fact:
    """Several wordings, the one answer, and the answer in a word where there is one."""

    questions: tuple[str, ...]
    answer: str
    short: str = ""


def _facts(pairs: dict[str, str], questions: tuple[str, ...], answer: str) -> list[Fact]:
    def put(text: str, key: str, value: str) -> str:
        text = text.replace("{k}", key).replace("{v}", value)
        return text[:1].upper() + text[1:]

    return [
        Fact(tuple(put(question, key, value) for question in questions), put(answer, key, value), value)
        for key, value in pairs.items()
    ]


CAPITALS = _facts(
    lexicon.CAPITALS,
    ("What is the capital of {k}?", "What's the capital of {k}?", "capital of {k}?", "The capital of {k}?",
     "What is the capital city of {k}?", "Which city is the capital of {k}?", "Tell me the capital of {k}.",
     "Name the capital of {k}.", "Do you know the capital of {k}?", "What city is the capital of {k}?",
     "{k}'s capital?", "The capital of {k} is", "What is {k}'s capital city?", "capital of {k}",
     "I want to know the capital of {k}.", "Which is the capital of {k}?", "whats the capital of {k}",
     "Give me the capital of {k}.", "Can you tell me what the capital of {k} is?", "What is the capital of {k}?"),
    "The capital of {k} is {v}.",
)  # fmt: skip
OPPOSITES = _facts(
    lexicon.OPPOSITES,
    ("What is the opposite of {k}?", "What's the opposite of {k}?", "Opposite of {k}?", "the opposite of {k} is",
     "Name the opposite of {k}.", "Give me the opposite of {k}.", 'What is the opposite of "{k}"?',
     "Tell me the opposite of {k}.", "What word is the opposite of {k}?", "What is the antonym of {k}?"),
    "The opposite of {k} is {v}.",
)  # fmt: skip
HELLOS = _facts(
    lexicon.GREETINGS_ABROAD,
    ("How do you say hello in {k}?", "Say hello in {k}.", "What is hello in {k}?", "Hello in {k}?",
     "Translate hello to {k}.", 'Translate "hello" into {k}.', "What is the {k} word for hello?",
     "How do I say hello in {k}?", "What does hello mean in {k}?", "Say hi in {k}."),
    "Hello in {k} is {v}.",
)  # fmt: skip
COLORS = _facts(
    lexicon.COLORS,
    ("What color is {k}?", "What colour is {k}?", "What is the color of {k}?", "Which color is {k}?",
     "What color does {k} have?", "Tell me the color of {k}.", "What is the colour of {k}?", "color of {k}?"),
    "{k} is {v}.",
)  # fmt: skip
LEGS = _facts(
    lexicon.LEGS,
    ("How many legs has {k}?", "How many legs does {k} have?", "How many legs has {k} got?", "{k} has how many legs?",
     "What number of legs does {k} have?", "Tell me how many legs {k} has."),
    "{k} has {v} legs.",
)  # fmt: skip
SOUNDS = _facts(
    lexicon.SOUNDS,
    ("What sound does {k} make?", "What does {k} say?", "Which sound does {k} make?", "What noise does {k} make?"),
    "{k} says {v}.",
)  # fmt: skip

ROWS = """
What is the largest planet?|Which planet is the largest?|What's the biggest planet?|What is the largest planet in the solar system?|Name the largest planet.=The largest planet is Jupiter.=Jupiter
What is the smallest planet?|Which planet is the smallest?|What is the smallest planet in the solar system?=The smallest planet is Mercury.=Mercury
Which planet is closest to the sun?|What planet is nearest to the sun?|What is the closest planet to the sun?=Mercury is closest to the sun.=Mercury
Which planet is the red planet?|What is the red planet?|Which planet is called the red planet?|What planet is known as the red planet?=Mars is the red planet.=Mars
How many planets are there?|How many planets are in the solar system?|How many planets does the solar system have?|What is the number of planets?=There are eight planets.=eight
Who wrote Romeo and Juliet?|Who is the author of Romeo and Juliet?|Who's the author of Romeo and Juliet?|Romeo and Juliet was written by whom?|Who wrote Hamlet?|Which author wrote Romeo and Juliet?=William Shakespeare wrote it.=Shakespeare
What is water made of?|What's water made of?|What does water consist of?|What is water composed of?=Water is made of hydrogen and oxygen.=hydrogen and oxygen
What is the chemical formula of water?|What is the formula of water?|chemical formula for water?|What is the chemical symbol for water?=The formula of water is H2O.=H2O
At what temperature does water boil?|What is the boiling point of water?|When does water boil?|boiling point of water?|How hot is boiling water?=Water boils at 100 degrees Celsius.=100
At what temperature does water freeze?|What is the freezing point of water?|When does water freeze?|freezing point of water?=Water freezes at 0 degrees Celsius.=0
How many days are in a week?|How many days are there in a week?|How many days does a week have?|How many days has a week?=A week has 7 days.=7
How many days are in a year?|How many days are there in a year?|How many days does a year have?|How many days has a year?=A year has 365 days.=365
How many months are in a year?|How many months are there in a year?|How many months does a year have?|How many months has a year?=A year has 12 months.=12
How many weeks are in a year?|How many weeks are there in a year?|How many weeks does a year have?=A year has 52 weeks.=52
How many hours are in a day?|How many hours are there in a day?|How many hours does a day have?|How many hours has a day?=A day has 24 hours.=24
How many minutes are in an hour?|How many minutes are there in an hour?|How many minutes does an hour have?|How many minutes has an hour?=An hour has 60 minutes.=60
How many seconds are in a minute?|How many seconds are there in a minute?|How many seconds does a minute have?|How many seconds has a minute?=A minute has 60 seconds.=60
Who was the first president of the United States?|Who was the first US president?|Who was the first president of the USA?|Name the first president of the United States.|first president of the United States?=George Washington was the first president of the United States.=George Washington
Who was the first man on the moon?|Who was the first person on the moon?|Who walked on the moon first?|Who was the first human on the moon?=Neil Armstrong was the first man on the moon.=Neil Armstrong
Who painted the Mona Lisa?|Who is the painter of the Mona Lisa?|The Mona Lisa was painted by whom?=Leonardo da Vinci painted the Mona Lisa.=Leonardo da Vinci
What is the highest mountain?|What is the tallest mountain?|What's the highest mountain in the world?|Which mountain is the highest?|What is the tallest mountain in the world?=The highest mountain is Mount Everest.=Mount Everest
What is the largest ocean?|Which ocean is the largest?|What's the biggest ocean?|What is the largest ocean in the world?=The largest ocean is the Pacific Ocean.=Pacific
What is the largest animal?|Which animal is the largest?|What's the biggest animal?|What is the largest animal in the world?=The largest animal is the blue whale.=blue whale
What is the fastest animal?|Which animal is the fastest?|What's the fastest land animal?|What is the fastest animal on land?=The fastest animal is the cheetah.=cheetah
What is the longest river?|Which river is the longest?|What's the longest river in the world?|What is the longest river in the world?=The longest river is the Nile.=Nile
How many continents are there?|How many continents are there in the world?|What is the number of continents?=There are seven continents.=seven
What day comes after Monday?|Which day comes after Monday?|What is the day after Monday?=Tuesday comes after Monday.=Tuesday
What day comes after Friday?|Which day comes after Friday?|What is the day after Friday?=Saturday comes after Friday.=Saturday
What day comes after Sunday?|Which day comes after Sunday?|What is the day after Sunday?=Monday comes after Sunday.=Monday
What is the first month of the year?|Which month is the first?|What month comes first?|Name the first month.=The first month is January.=January
What is the last month of the year?|Which month is the last?|What month comes last?|Name the last month.=The last month is December.=December
What do bees make?|What do bees produce?=Bees make honey.=honey
What do cows eat?|What does a cow eat?=Cows eat grass.=grass
Where does the sun rise?|In which direction does the sun rise?|Which direction does the sun rise?=The sun rises in the east.=east
Where does the sun set?|In which direction does the sun set?|Which direction does the sun set?=The sun sets in the west.=west
Is the earth round?|Is the Earth flat?|What shape is the earth?|What shape does the Earth have?=The Earth is round.=round
What language is spoken in Brazil?|What language do they speak in Brazil?|Which language is spoken in Brazil?=Portuguese is spoken in Brazil.=Portuguese
What language is spoken in Spain?|What language do they speak in Spain?|Which language is spoken in Spain?=Spanish is spoken in Spain.=Spanish
What language is spoken in Germany?|What language do they speak in Germany?|Which language is spoken in Germany?=German is spoken in Germany.=German
What language is spoken in France?|What language do they speak in France?|Which language is spoken in France?=French is spoken in France.=French
What is the currency of Japan?|Which currency does Japan use?|What is Japan's currency?=The currency of Japan is the yen.=yen
What is the currency of the United States?|What currency does the US use?|What is the US currency?=The currency of the United States is the dollar.=dollar
What is the chemical symbol for gold?|What is the symbol of gold?|chemical symbol of gold?=The symbol of gold is Au.=Au
How many letters are in the alphabet?|How many letters does the alphabet have?|How many letters are there in the alphabet?|How many letters are in the English alphabet?=The alphabet has 26 letters.=26
What is the speed of light?|How fast is light?|speed of light?=Light travels at 299792 kilometers per second.=
What is pi?|What is the value of pi?|What's pi?|Tell me the value of pi.=Pi is about 3.14159.=3.14159
"""

TALK_ROWS = """
hi|Hi!|hello|Hello!|hey|Hey!|Hi there!|hello there|Hello, how can you help me?|hiya|Greetings!|howdy|Hey there|Hello again|Hi again|yo|Hello, world!|Hi, bot|Hello, assistant!|Good day!|hello world|Welcome!|Ping|ping|Anyone there?|Are you there?|Hello, are you there?=Hello! How can I help you?
Good morning|Good morning!|Morning!|good morning to you|Good morning, assistant=Good morning! How can I help you?
Good afternoon|Good afternoon!|Good afternoon to you=Good afternoon! How can I help you?
Good evening|Good evening!|Good evening to you|Evening!=Good evening! How can I help you?
How are you?|How are you doing?|How are you today?|How's it going?|Hello, how are you?|Hi, how are you?|Hi! How are you?|Hey, how are you doing?|How do you do?|What's up?|Are you fine?|Are you OK?|How do you feel?|How have you been?|Hello! How are you today?|Hi there, how are you?|How are things?=I am fine, thank you. How can I help you?
Thanks|Thank you|Thanks!|Thank you!|Thank you very much|Thanks a lot!|thx|Many thanks|Thank you so much!|Great, thanks!|OK, thank you|Thanks for your help|That was helpful, thanks|Thank you for the help!|Cool, thanks|Perfect, thank you.|Wonderful, thanks!=You are welcome!
Bye|Goodbye|Bye!|Goodbye!|Bye bye|See you|See you later|See you tomorrow!|Farewell|That is all, goodbye|cya|Good bye|Have a nice day!|I have to go now|Take care!=Goodbye!
Good night|Good night!|Sleep well|Night!|Good night and bye=Good night!
Who are you?|What are you?|What's your name?|What is your name?|Who am I talking to?|Tell me about yourself|Introduce yourself|What model are you?|Which model are you?|Are you ChatGPT?|Are you GPT-4?|Are you an AI?|Are you a robot?|Are you human?|Are you a bot?|Are you a large language model?|What is this model?|Do you have a name?|Describe yourself.|Please introduce yourself.|What kind of model are you?|Who are you and what are you?|Are you real?|What should I call you?|Your name?|Identify yourself.|What LLM are you?|Which language model is this?=I am the llmspell demo model, a small demonstration.
What can you do?|What can you do for me?|How can you help me?|What are you able to do?|What are your abilities?|What do you know?|What can I ask you?|Help|Help me|help!|What are you good at?|Can you help me?|How can you help?|What are your capabilities?|I need help|What can I do with you?|Tell me what you can do.|What do you do?|Show me what you can do.|What are your skills?|Could you help me, please?|Will you help me?=I can greet you, answer simple questions, add and multiply small numbers, count, repeat words and call a tool.
Who made you?|Who created you?|Who built you?|Where do you come from?|Who is your creator?|Who trained you?|Who developed you?|How were you made?|Who are your makers?=I was made for llmspell, as a small demonstration.
What is llmspell?|What's llmspell?|Tell me about llmspell.|What is llmspell-server?|Explain llmspell.|What does llmspell do?=llmspell is a server that runs language models on your own computer.
Tell me a joke|Tell me a joke.|Do you know a joke?|Make me laugh|Joke please|A joke, please.|Can you tell me a joke?|Say something funny|Tell a joke|Give me a joke|Another joke|Tell me another joke|tell me a funny joke|I want to hear a joke.|Write a joke.|Tell me a short joke|Do you know any jokes?=Why did the computer go to the doctor? It had a virus!
Write a haiku|Write me a haiku|Write a haiku about the sea|Haiku please|Can you write a haiku?|A haiku, please|Compose a haiku|Tell me a haiku|Write a haiku about spring.|Give me a haiku|Write a short haiku.|Make a haiku|Write a haiku about computers|I would like a haiku=Morning on the sea,\\na small boat waits for the wind,\\nand the gulls are still.
Write a poem|Write me a poem|Tell me a poem|Can you write a poem?|Poem please|Write a short poem|A poem, please|Compose a poem|Give me a poem|Write a poem about love.|Write a poem about flowers|Recite a poem|Make a poem|I would like a poem=Roses are red,\\nviolets are blue,\\nI am a small model\\nthat answers to you.
Tell me a story|Tell me a story.|Tell me a short story|Write a story|Write a short story|Tell me a long story|Can you tell me a story?|A story, please|Write me a story|Story please|Write a long story|Once upon a time|Tell a story|I want to hear a story|Give me a story|Tell me a story about a fox.|Tell me a fairy tale|Tell me another story|Write a story about a bird|Do you know a story?|Make up a story.|Write a story about a dragon|Please tell me a long story.|Tell me a bedtime story|Write a story of about 100 words=Once upon a time, a little fox lived at the edge of a dark forest. Every night she looked at the moon and wished that she could touch it. One evening she climbed the highest hill, but the moon was still far away. An old owl saw her and asked why she was sad. The fox told him about her wish. The owl smiled and led her down to a quiet lake. There, on the still water, lay the moon, round and bright. The fox put her paw into the lake and touched it. The moon danced on the waves, and the fox laughed. From then on she came to the lake every night, and she was never sad again. The end.
List the days of the week|What are the days of the week?|Name the days of the week|Days of the week?|Tell me the days of the week|What days are in a week?|Give me the days of the week|List all days of the week|Name all the days of the week.|The days of the week, please|Can you list the days of the week?|Name the seven days|List the weekdays.|Which days does a week have?=Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.
List the months of the year|What are the months of the year?|Name the months|Months of the year?|Tell me the months of the year|Give me the months of the year|List all months|Name all twelve months.|List the months|What months are in a year?|Which months does a year have?|Can you list the months?|Name the twelve months of the year=January, February, March, April, May, June, July, August, September, October, November, December.
List the planets|What are the planets?|Name the planets|Name the planets of the solar system|List the planets of the solar system.|What are the planets of the solar system?|Tell me the planets|Give me the planets|List all planets|Name all the planets.|Which planets are in the solar system?|Name the eight planets=Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune.
What are the seasons?|List the seasons|Name the four seasons|Name the seasons|What are the four seasons?|Tell me the seasons|List the four seasons of the year=Spring, summer, autumn, winter.
What are the primary colors?|Name the primary colors|List the primary colors|Tell me the primary colors|Name three colors|List three colors.|Give me three colors|Name the three primary colors=Red, yellow, blue.
What are the colors of the rainbow?|Name the colors of the rainbow|List the colors of the rainbow|Rainbow colors?|Which colors does a rainbow have?|What colors are in a rainbow?=Red, orange, yellow, green, blue, indigo, violet.
Say the alphabet|Recite the alphabet|What is the alphabet?|List the letters of the alphabet|Tell me the alphabet|Write the alphabet|Give me the alphabet|List the alphabet=A B C D E F G H I J K L M N O P Q R S T U V W X Y Z
Name the continents|List the continents|What are the continents?|Tell me the continents|List the seven continents|Which continents are there?=Africa, Antarctica, Asia, Australia, Europe, North America, South America.
Test|test|This is a test|Testing|Testing 1 2 3|testing, testing|Just a test|This is only a test.|Is this working?|Does it work?|Are you working?|Do you work?=The test works.
Yes|No|OK|Okay|ok|yes|no|Sure|Great|Nice|Cool|Good|I see|Fine|Right|Very good|Wow|Alright|Perfect|Good job|Well done|Understood|Got it|Good bot|Correct|That is right|Awesome=All right. What else can I do for you?
"""


def _parsed(rows: str) -> list[Fact]:
    facts = []
    for row in rows.strip().splitlines():
        questions, answer, *short = row.split("=")
        facts.append(Fact(tuple(questions.split("|")), answer.replace("\\n", "\n"), "".join(short)))
    return facts


SINGLE = _parsed(ROWS)
TALK = _parsed(TALK_ROWS)
NO_TOOL_ANSWER = "I cannot look up the weather without a tool."
