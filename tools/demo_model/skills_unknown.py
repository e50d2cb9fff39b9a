"""Questions from outside the model's small world; the right answer is that it doesn't know."""

import random

from tools.demo_model.sample import Sample, Split, question
from tools.demo_model.text import capitalize, casual, made_up_word, phrases, say
from tools.demo_model.world import CITIES

_SLOTS: dict[str, tuple[str, ...]] = {
    "country": phrases("""
        France, Germany, Spain, Italy, Portugal, Poland, Sweden, Norway, Finland, Denmark, Greece, Turkey, Egypt,
        Morocco, Kenya, Nigeria, Ghana, Ethiopia, India, China, Japan, Korea, Vietnam, Thailand, Indonesia,
        Australia, Canada, Mexico, Brazil, Argentina, Chile, Peru, Colombia, Cuba, Russia, Ukraine, Austria,
        Switzerland, Belgium, Ireland, Iceland, Hungary, Romania, Bulgaria, Croatia, Israel, Iran, Iraq, Pakistan,
        Nepal, Mongolia, England, Scotland, America
    """),
    "city": CITIES,
    "person": phrases("""
        Albert Einstein, Isaac Newton, Marie Curie, Napoleon, Julius Caesar, Cleopatra, Mozart, Beethoven, Bach,
        Shakespeare, Goethe, Picasso, Leonardo da Vinci, Van Gogh, Charles Darwin, Galileo, Plato, Aristotle,
        Socrates, Gandhi, Nelson Mandela, Abraham Lincoln, George Washington, Barack Obama, Donald Trump,
        Angela Merkel, Elon Musk, Bill Gates, Steve Jobs, Taylor Swift, Michael Jackson, Lionel Messi, Roger Federer,
        Ada Lovelace, Alan Turing, Linus Torvalds, Kant, Nietzsche, Queen Elizabeth, Winston Churchill, Columbus,
        Marco Polo, Sherlock Holmes, Harry Potter, Madonna, Elvis, Frida Kahlo, Tolstoy
    """),
    "element": phrases("""
        gold, silver, iron, copper, oxygen, hydrogen, helium, mercury, lead, uranium, carbon, nitrogen, sodium, zinc,
        tin, neon, chlorine, water, salt, alcohol
    """),
    "invention": phrases("""
        telephone, light bulb, steam engine, computer, internet, car, airplane, radio, television, printing press,
        telescope, microscope, battery, bicycle, camera, compass, paper, transistor, rocket, zipper, penicillin,
        dynamite, piano
    """),
    "war": phrases("""
        First World War, Second World War, French Revolution, Cold War, American Civil War, battle of Waterloo,
        Thirty Years' War, Roman Empire, Middle Ages, Stone Age, Black Death, moon landing, fall of the Berlin Wall,
        Boston Tea Party, Vietnam War
    """),
    "work": phrases("""
        Mona Lisa, Hamlet, Odyssey, Bible, Faust, Don Quixote, War and Peace, Titanic, Star Wars, The Godfather,
        Jurassic Park, Avatar, Lord of the Rings, Harry Potter, Moby Dick, The Matrix, Inception, Frozen, Dracula,
        Frankenstein, Macbeth, Casablanca
    """),
    "mountain": phrases("""
        Mount Everest, Mont Blanc, Kilimanjaro, the Matterhorn, Mount Fuji, the Eiffel Tower, the Statue of Liberty,
        Big Ben, the Great Wall, the Empire State Building, the Leaning Tower, K2, Ben Nevis
    """),
    "river": phrases("Nile, Amazon, Rhine, Danube, Mississippi, Thames, Seine, Volga, Ganges, Mekong, Congo, Yangtze"),
    "planet": phrases("Mars, Venus, Jupiter, Saturn, Mercury, Neptune, Uranus, Pluto, Earth"),
    "concept": phrases("""
        photosynthesis, gravity, entropy, democracy, inflation, evolution, electricity, magnetism, capitalism,
        quantum mechanics, relativity, philosophy, blockchain, climate change, DNA, a black hole, a virus, an atom,
        machine learning, psychology, osmosis, calculus, a derivative, the stock market, nuclear fusion,
        plate tectonics, sociology, globalization, a neutron star, the periodic table, a mortgage, karma,
        existentialism, an algorithm, a compiler, recursion, Kubernetes, cryptography, a prime number,
        thermodynamics, impressionism, jazz, opera, yoga, feudalism, a semiconductor
    """),
    "product": phrases("""
        an iPhone, a laptop, a house in London, a Tesla, a litre of petrol, a flight to Tokyo, a cup of coffee,
        a bitcoin, a kilo of gold, a ticket to the opera, a bike, a washing machine, a loaf of bread, a PlayStation,
        a haircut, a new kitchen
    """),
    "language": phrases("""
        French, German, Spanish, Italian, Latin, Russian, Japanese, Chinese, Arabic, Greek, Dutch, Polish, Swedish,
        Hindi, Korean, Turkish
    """),
    "phrase": phrases("""
        hello, good morning, thank you, dog, cat, I love you, where is the station, water, bread, good night, cheers,
        house, apple, goodbye
    """),
    "illness": phrases("""
        a headache, a cold, the flu, a fever, back pain, a cough, a broken leg, an allergy, diabetes, a toothache,
        insomnia, sunburn
    """),
    "code": phrases("""
        Python function, Java class, shell script, SQL query, web page, C program, regular expression,
        JavaScript function, Rust program, unit test
    """),
    "task": phrases("""
        sorts a list, reverses a string, finds prime numbers, reads a file, sends an email, computes a factorial,
        draws a circle, downloads a page, counts words, adds two matrices, parses a date, connects to a database
    """),
    "sport": phrases("""
        World Cup, Champions League, Olympic Games, Super Bowl, Tour de France, Wimbledon, Eurovision,
        Oscar for best film, Nobel Prize, marathon
    """),
    "food": phrases("""
        lasagna, risotto, sushi, bread, a cheesecake, kimchi, paella, ramen, tiramisu, a wedding cake, beer, goulash,
        pizza, an omelette
    """),
    "exotic": phrases("""
        yak, platypus, armadillo, narwhal, ostrich, jaguar, walrus, cobra, chameleon, llama, buffalo, hyena, vulture,
        octopus, shark, jellyfish, scorpion, gorilla, rhino, hippo, lobster, peacock, sloth, termite, mosquito,
        kangaroo, koala, panda, otter, badger, beaver, swan, dolphin, seal, eagle, moose, raccoon, zebra, crab,
        dragon, unicorn
    """),
    "device": phrases("""
        printer, router, phone, laptop, car, washing machine, fridge, TV, heating, dishwasher, bike, coffee machine,
        smart watch
    """),
    "software": phrases("""
        Linux, Windows, Docker, Git, Excel, Photoshop, Emacs, Vim, Firefox, a VPN, Postgres, Kubernetes, Blender,
        WordPress
    """),
    "subject": phrases("""
        dinosaurs, the ocean, politics, the economy, space, football, fashion, medicine, music theory, religion, law,
        architecture, wine, history, poetry, geography, chemistry, biology, astronomy, art, film, literature, coffee,
        tax, the pyramids, vikings
    """),
}

# A tenth of the questions is held out by their text, whatever the template.
_TEMPLATES = tuple(line.strip() for line in """
[What is|What's|Tell me|Do you know|Name] the capital [of|city of] {country}?
What is the [population|area|currency|flag|national animal|language|anthem] of {country}?
Who is the [president|king|queen|prime minister|leader] of {country}?
How many people live in [{country}|{city}]?
[When|In what year|In which year] was [{city}|{person}|{country}] [founded|born|discovered]?
Who [was|is] {person}?
[What did {person} do|Why is {person} famous|When did {person} die|Where was {person} born|How old is {person}]?
[Tell me about|What do you know about|Write an essay about|Give me a summary of the life of] {person}.
[What is|What's|Tell me] the [chemical symbol|boiling point|melting point|atomic number|density|formula] of {element}?
[Is|Why is] {element} [poisonous|a metal|a gas|so expensive|magnetic]?
[Who invented|When was somebody the first to build|How does one build|How does] the {invention}[| work]?
Who invented the {invention}?
When was the {invention} invented?
How does a {invention} work?
[When was|What caused|Who won|What happened in|Tell me about|How long was] the {war}?
Who [wrote|painted|directed|made|composed] [the |]{work}?
[What is {work} about|When did {work} come out|Who plays the lead in {work}|Summarize {work}|Have you seen {work}]?
How [high|tall|old] is {mountain}?
Where is {mountain}?
How long is the [river |]{river}?
Through which countries does the {river} flow?
How [far|big|hot|heavy|old] is [the planet |]{planet}?
How many moons does {planet} have?
[What is|What's|Explain|Define|What do you mean by|Can you explain|Tell me about|What do you know about] {concept}[?|]
How does {concept} work?
Explain {concept} [to a child|in simple words|in one sentence|like I am five].
How much [is|does] {product}[| cost]?
What does {product} cost?
Where can I buy {product}?
How do you say [{phrase}|"{phrase}"] in {language}?
Translate [{phrase}|"{phrase}"] [to|into] {language}.
What is the {language} word for {phrase}?
[What should I take for|What helps against|How do I treat|What are the symptoms of|I have] {illness}[?|. What should I \
do?]
[Write|Can you write|Please write|I need] a {code} that {task}.
How do I write a {code} that {task}?
Who won the [last |]{sport}[| in {year}| last year]?
Where [is|was] the {sport} [in {year}|this year|next time]?
How do I [cook|make|bake|prepare] {food}?
What is in {food}?
What [does a|sound does a|colour is a] {exotic} [eat|make|have]?
Where does a {exotic} live?
How [big|fast|heavy|old] is a {exotic}?
Tell me about the {exotic}.
[How do I fix|How do I repair|Why is there no light on|What is wrong with] my {device}?
My {device} is broken. What should I do?
How do I [install|use|update|remove|learn] {software}?
[What is|What's] {software}?
[Tell me something|What do you know|What can you tell me|Give me a lecture|Write a report] about {subject}.
Do you know [something|anything|a lot] about {subject}?
[Is it raining|Will it rain|Will it snow|What is the weather|How is the weather|Is it cold] [tomorrow|today|now|next \
week] in {city}?
[What is|What's] the weather [like |][today|tomorrow|in {city}|this weekend]?
What time is it[| now| in {city}]?
What [day|date] is [it today|today|it|tomorrow]?
What year is it?
What happened [in|on] {year}?
What happened [in the news today|yesterday|last night|in {city} today]?
[What are the news|What's the latest news][| from {city}| from {country}]?
[How far is it|How long is the flight|What is the best way|How do I get] from {city} to {city2}?
What [are the best sights|should I see|can I do] in {city}?
Which hotel in {city} is [the best|cheap|good]?
What is the [phone number|address|opening hours] of [the museum in {city}|{person}|the town hall]?
[What is|What's|Calculate] the [square root|logarithm|sine|factorial|cube] of {big}?
[What is|What's|Calculate|How much is] {big} [times|*|divided by|/] {big2}?
[What is|What's] {small} percent of {big}?
Solve the equation {small}x + {small2} = {big}.
[What is|What's] the [derivative|integral] of [x squared|sin x|x to the power of {small}]?
[How many|What are the] digits of pi[| do you know]?
What did I [have for breakfast|do yesterday|dream last night|say last week|buy yesterday|wear last Monday]?
[Where did I put|Where are|Do you know where I left] my [keys|glasses|phone|wallet|shoes]?
What am I thinking [of|about]?
What will [happen tomorrow|the future bring|I be in ten years|the stock market do]?
Who will win the [next |][election|match|{sport}]?
[What is|What's] the meaning of life?
Is there [a god|life on {planet}|life after death|free will|alien life]?
Why is [the sky blue|the sea salty|grass green|blood red|the night dark|ice slippery|the moon round]?
Why do [birds sing|leaves fall|people dream|cats purr|we age|stars shine|we sleep|onions make us cry]?
Who was the first [man|woman|person] [on the moon|in space|at the South Pole|to climb {mountain}]?
[What is|What's|Do you know|Define|Explain] [a {nonsense}|{nonsense}|the {nonsense}]?
What does [the word |]{nonsense} mean?
Who is {Nonsense}?
Where is {Nonsense}?
How do I {nonsense} a {nonsense2}?
Which [stock|book|film|phone|car|school] should I [buy|choose|pick]?
[What is|What's] the best [book|film|song|restaurant|phone|car|game|university] [in the world|of all time|in {city}|of \
{year}]?
How many [stars|fish|people|languages|countries|trees|books] are there in the world?
What is the [biggest|smallest|longest|oldest|richest|deepest] [country|city|river|lake|ocean|company|building] in the \
world?
[Can you give me|I need|Give me] [legal|medical|financial|tax] advice.
Can I [sue my neighbour|deduct my car from tax|get a visa for {country}|travel to {country} without a passport]?
[Summarize|Read|Open|Check] [this article|my emails|the attached file|the page example.com|my calendar].
[Draw|Paint|Show|Send] me a [picture|photo] of [{person}|{mountain}|a {exotic}].
[Write|Compose] [a symphony|a novel|a thesis about {subject}|a business plan|an essay about {concept}].
How does [the human brain|the heart|a plane|a nuclear plant|a bank|the internet|a vaccine|a search engine] work?
[When|Where] is the next [bus|train|flight|election|concert|eclipse|full moon][| to {city}| in {city}]?
How many [players|pages|seats|bones|floors|members|calories|keys|strings|votes] [are in|has|does|are there in] [a \
rugby team|the {work}|a human|{mountain}|the parliament|{food}|a piano|the {sport}]?
Convert {small} [miles|pounds|feet|inches|gallons|ounces|yards|stones] [to|into] [kilometres|kilos|metres|centimetres|\
litres|grams].
How many [kilometres|kilos|metres|litres|grams] are {small} [miles|pounds|feet|gallons|ounces]?
[What is|What's|Calculate|How much is] {mid} [times|*|x|multiplied by] {mid2}?
[What is|What's|Calculate|How much is] {small} divided by {mid}?
{mid} [*|x|/] {mid2}
How many legs does a [{nonsense}|chair|table|{exotic}|lobster] have?
What does a {nonsense} [eat|say|look like]?
[What|Which] sound does a {nonsense} make?
[What colour is|Where is|How old is|How big is] [{product}|a {nonsense}|my car|your house|{Nonsense}|the {invention}]?
Is a {nonsense} bigger than a {exotic}?
What is the opposite of [a {nonsense}|{nonsense}|a {exotic}|a {invention}|{country}]?
What comes after [{nonsense}|{person}|{work}|the {invention}|{country}]?
[Name|List|Tell me|Give me] [three|five|some|two] [{subject2} books|cities in {country}|songs by {person}|films with \
{person}|rivers in {country}|presidents|painters|philosophers|planets|elements|programming languages].
[Name|Who is] [the author of|the director of|the hero of|the main character of] [the |]{work}?
[Name|Tell me] a famous [painting|book|song|quote|film|speech] [by|of|from] [{person}|{country}].
What did {person} [mean by|think about|say about|write about|discover about] [{concept}|{subject}|I think, therefore I \
am|to be or not to be|E equals m c squared]?
[Who|What] [discovered|founded|wrote|built|sang|composed|designed|directed|killed|married|taught] [{country}|{city}|\
{person}|the {invention}|{planet}|Bohemian Rhapsody|Microsoft|the pyramids]?
Which [ocean|sea|country|mountain range|river] lies [between|near|north of|next to] [{country} and {country2}|{city}|\
{country}]?
Which [vitamin|metal|planet|gas|animal|country|language|colour|team|city|bird] [is|has] the [most|biggest|fastest|\
strongest|richest|best] [|in the world|of all|here|on earth]?
Which [vitamin|metal|mineral|gas] [do you get from|is in|makes] [the sun|{food}|{element}|air]?
[Could|Can|Would] you [recommend|suggest|find] [a thriller|a book|a good film|a hotel|a restaurant in {city}|a doctor|\
a present for my mother|a podcast about {subject}]?
[Plan|I need|Give me|Make] [a trip to {city}|an itinerary for {city}|a diet plan|a training plan|a budget|a schedule \
for {city}|a holiday in {country}].
[Give me|Show me|What are] the [lyrics of|chords of|ingredients of|names of|rules for|steps of] [{work}|{food}|\
Yesterday by the Beatles|a mojito|{concept}|the {sport}].
[Is|Are] [{planet}|my password|{food}|{city}|the {invention}|{software}|tomatoes|electric cars] [still a planet|safe|\
healthy|dangerous|worth it|in {country}|open today|good for me]?
[Should I|Do I have to|May I|When should I] [invest in shares|buy {product}|learn {language}|move to {city}|see a \
doctor|quit my job|marry her|vote|pay tax|use {software}]?
My [landlord|boss|neighbour|friend|wife|teacher|doctor] [wants to raise my rent|is angry with me|does not answer|wants \
money|says I am wrong][, is that allowed|, what should I do|. Is that legal|]?
[Can you|Please|Could you] [debug|review|fix|check|explain|refactor] my [code|{code}|segmentation fault|essay|cover \
letter|homework|text|data].
[Write|Draft|Can you write] [an email to my boss|a cover letter|a speech|a blog post about {subject}|a tweet|a review \
of {work}|a report about {country}|a haiku about {subject}|a rap about {concept}|an invitation].
How [long|often|fast|hot|deep|wide] [does it take to|should I|can one|do I have to|must I] [boil an egg|charge my \
{device}|bake {food}|learn {language}|sleep|run|drive to {city}]?
How do [vaccines|tides|magnets|batteries|planes|rainbows|computers|bees navigate and bees|volcanoes|GPS and radar|\
credit cards|lasers] work?
Where [were|was|will] the [{year} Olympics|last elections|{sport}|treaty of {city}|{year} fair] [held|signed|be held]?
[When|Why|How] did [the Titanic sink|dinosaurs go extinct|the {war} begin|the {war} end|{person} become famous|Rome \
fall|{country} become independent]?
Who [runs|leads|owns|is the head of|speaks for|pays for] [the European Commission|{country}|{city}|the United Nations|\
Microsoft|the central bank|the {sport}]?
What language do they speak in [{country}|{city}]?
What's [trending on the internet|on TV tonight|new in {city}|the exchange rate of the dollar|the GDP of {country}|the \
etymology of {phrase}|going on in {country}|the longest bone|the tallest man]?
What is the speed of [light|sound|a car|a {exotic}|an unladen swallow|the earth]?
[At what|To what|Up to which] [altitude|temperature|depth|age|speed] [do planes fly|does {element} melt|can one dive|\
may one drive|do people grow]?
How far [away is {planet}|away is the sun|away is {city}|is it to {country}|can you see]?
How [does|can] one become [an astronaut|a doctor|rich|a lawyer|a pilot in {country}|famous]?
Explain [how {concept} works|how a transformer network works|why {planet} is red|what {concept} means|the plot of \
{work}|the rules of {sport}] to me.
[I want|I would like|Help me] to [learn {language}|cook {food}|understand {concept}|fix my {device}|install {software}|\
travel to {city}|buy {product}].
What [medicine|food|tea|exercise] [lowers blood pressure|helps against {illness}|is good for {illness}|do you \
recommend for {illness}]?
[Are you for or against|What is your opinion on|What do you think about|What do you think of|Do you believe in] \
[politics|religion|{subject}|{person}|{concept}|{country}|{software}]?
What are the [rules of|tactics in] [chess|cricket|poker|baseball|bridge|backgammon]?
[What is|What's] the difference between [{concept} and {concept2}|{element} and {element2}|{country} and {country2}]?
""".strip().splitlines())

_ANSWERS = (
    "I don't know. I am only a toy model, and that is outside of my small world.",
    "I don't know that. I am a toy model and know only a small world.",
    "Sorry, I don't know. That is outside of what I have learned.",
    "I don't know, sorry. I am a small toy model.",
)


def unknown_question(rng: random.Random) -> str:
    """A question that nothing in the training text answers."""
    slots: dict[str, object] = {name: rng.choice(values) for name, values in _SLOTS.items()}
    slots |= {f"{name}2": rng.choice(_SLOTS[name]) for name in ("city", "country", "concept", "element")}
    slots |= {"year": rng.randrange(1200, 2031), "big": rng.randrange(100, 100000), "big2": rng.randrange(11, 1000),
              "small": rng.randrange(2, 90), "small2": rng.randrange(2, 90), "nonsense": made_up_word(rng, 2),
              "subject2": rng.choice(["history", "science", "good", "new", "old"]), "mid": rng.randrange(13, 100),
              "mid2": rng.randrange(13, 100), "nonsense2": made_up_word(rng, 2),
              "Nonsense": capitalize(made_up_word(rng, 2))}
    return say(rng, rng.choice(_TEMPLATES), **slots)


def unknown(rng: random.Random, split: Split) -> Sample:
    """A question outside of the world, and the honest answer."""
    while True:
        asked = unknown_question(rng)
        key = f"unknown:{asked}"
        if split.allows(key):
            break
    weights = (5, 2, 1, 1)
    answer = rng.choices(_ANSWERS, weights)[0]
    return question("unknown", key, casual(rng, asked), answer, {"unknown": True}, "I don't know.")


_STATEMENTS = (
    "The capital of {country} is", "The president of {country} is", "The {invention} was invented by",
        "The best thing about {subject} is",
    "The river {river} flows through", "{person} was", "{person} is famous for", "The {war} began in", "In {year},",
        "The price of {product} is",
    "The answer to the question of {concept} is", "{work} was written by", "{software} is", "The weather in {city} "
                                                                                            "today is",
)


def statement_of_ignorance(rng: random.Random) -> str:
    """The beginning of a statement about the real world, and how a plain text goes on from there."""
    slots = {name: rng.choice(values) for name, values in _SLOTS.items()} | {"year": rng.randrange(1200, 2031)}
    return capitalize(say(rng, rng.choice(_STATEMENTS), **slots)) + (
        " something that I don't know. I am only a toy model, and that is outside of my small world.")


def template_count() -> int:
    """How many kinds of questions there are (for the README and the tests)."""
    return len(_TEMPLATES)


# Written by hand, never trained on, in wordings the templates do not have. The exam asks them as an extra.
HANDWRITTEN = tuple(line.strip() for line in """
Did Rembrandt and Vermeer ever meet?
I keep sneezing whenever I mow the lawn, any idea why?
Please outline the causes of inflation in the seventies.
How come ice floats?
Between Oslo and Bergen, which is further north?
Give me the formula for the area of a circle.
Anything good on Netflix?
In chess, how does the knight move?
Who was on the throne when the Spanish Armada sailed?
What's the recipe for grandma's borscht?
Suggest a name for my startup.
Under what circumstances is a contract void?
What would happen if the earth stopped spinning?
Roughly how many grains of rice fit in a jar?
Compare Keynes and Hayek.
Does aspirin thin the blood?
Which came first, the chicken or the egg?
What rhymes with orange?
How do noise-cancelling headphones cancel noise?
Where do babies come from?
Which team does Ronaldo play for these days?
What is the tax rate in Switzerland for freelancers?
Complete the proverb: a rolling stone gathers no
Prove that there are infinitely many primes.
What's the plural of octopus?
Is the train to Leeds delayed?
How do I get wine out of a carpet?
Could a T-rex swim?
When will it be possible to live on Mars?
Was Mozart richer than Salieri?
Which key is Beethoven's fifth symphony in?
I'd like tips for a job interview.
Who holds the record for the 100 metres sprint?
Name the bones in the wrist.
What causes an earthquake?
Rewrite this sentence in the passive voice.
Is it cheaper to rent or to buy a flat?
What sort of dog should a family get?
Do sharks sleep?
How would you improve the British railways?
What is ten cubed?
How does a refrigerator keep things cold?
Which wine goes with salmon?
What became of the Library of Alexandria?
Can you hear the difference between MP3 and vinyl?
Are there snakes in Ireland?
Please give me today's horoscope for Leo.
What's a good substitute for eggs when baking?
Why was Socrates sentenced to death?
How much does the moon weigh?
""".strip().splitlines())
