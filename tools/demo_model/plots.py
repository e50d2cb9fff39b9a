"""Plots of the short stories: each is a chain of lines, and each line has many wordings.

Slots: N hero, he/his/him and He/His, A the animal ("fox"), kind (an adjective), P the place ("the old mill"), inP ("at
the old mill"), T a thing, C a colour, F a food. A line that starts with ``?`` is left out half of the time. Lines must
not use the names of animals or places for anything else: the exam looks for strangers.
"""

OPENINGS = (
    "[Once upon a time|Once|A long time ago|Not so long ago], there was a {g} named {N}, who lived [near|not far from|"
    "close to] {P}.",
    "[Once upon a time|Long ago|One day], a {age} {g} [named|called] {N} came to {P}.",
    "{N} was a {age} {g} who loved to [play|be|spend the day] {inP}.",
    "There once was a {age} {g} called {N}. Every day {he} went for a walk {inP}.",
    "{N} was a {age} {g} who was often alone {inP}, on {sky} days and on {sky2} days.",
)

CLOSINGS = (
    "From that day on, {N} and the {A} were [best|good|the best of] friends.",
    "And so {N} and the {A} became friends [for life|forever|and met every day].",
    "That evening {N} went home [happy|tired but happy|with a big smile], and the {A} [waved goodbye|slept well|was "
    "happy too].",
    "{N} never forgot [that day|the kind {A}|what the {A} had done], and often came back to {P}.",
    "And if you go to {P} today, you may still see {N} and the {A} [laughing|playing|singing] together.",
    "{He} had learned that [a friend can be small|kind words open every door|it is good to help others|nobody is too "
    "small to help].",
)
THE_END = ("The end.", "", "", "They lived happily ever after.")

PLOTS = (
    (  # something is lost
        "[One morning|But one day|That day], {N} [lost {his} {C} {T}|could not find {his} {C} {T}].",
        "[{He} looked under the bed and behind the door, but it was gone.|{He} looked [everywhere|high and low], but "
        "it was nowhere.]",
        "Then {he} met a {kind} {A} {inP}.",
        '"[Why are you so sad|What is wrong|What are you looking for]?" asked the {A}. "I have lost my {T}," said {N}.',
        '?"Don\'t worry," said the {A}. "[I will help you|Two can look better than one|We will find it]."',
        "[Together they looked behind every stone.|They looked and looked until the sun was low.|The {A} had very "
        "sharp eyes and looked [up and down|left and right].]",
        "At last [the {A} found the {T}|they saw something {C}: it was the {T}|the {A} spotted the {T}] [under a pile "
        "of leaves|behind a big stone|beside an old wall]!",
        '"Thank you!" said {N}, and [gave the {A} some {F}|shared {his} {F} with the {A}|danced with joy].',
    ),
    (  # rain and shelter
        "[Suddenly|All at once|Soon], dark clouds came and it began to rain [hard|very hard|like never before].",
        "{N} had no [coat|umbrella] and was [wet and cold|soon wet from head to toe].",
        "?{He} ran as fast as {he} could, but the rain was faster.",
        'Then {he} heard a voice. It was a {kind} {A}. "[Come with me|Follow me|Over here]," it said, "I know a dry '
        '[spot|corner|place]."',
        "The {A} showed {him} a [small roof|hollow log|dry corner] {inP}, and they sat [down|there] side by side.",
        "[To pass the time, they told each other funny stories.|They ate {F} and listened to the rain.|The {A} sang a "
        "song about the {C} clouds, and {N} clapped.]",
        "When the rain [stopped|was over], a [big rainbow|rainbow] stood in the sky.",
        '"Next time I will bring [a big umbrella for two|some {F} for you]," said {N}.',
    ),
    (  # a hungry animal
        "[One day|That day], {N} [heard a soft cry|saw something move] {inP}. It was a {kind} {A}.",
        '"[I am so hungry|I have not eaten all day]," said the {A}. "[I cannot find any food|All my food is gone]."',
        "{N} [felt sorry for it|wanted to help at once]. {He} had only [a little|one piece of] {F} in {his} bag.",
        "?It was {his} lunch, and {he} was hungry too.",
        'But {he} [smiled and gave half of it to the {A}.|said: "Let us share it."]',
        "The {A} ate it all and [jumped for joy|was full of joy].",
        '"Now I will show you [my secret|something]," said the {A}, and led {him} to a [{C} {T}|box with a {C} {T} '
        "in it] that lay hidden {inP}.",
        '"[It is yours now|Keep it|It is for you]," said the {A}, "because you [have a good heart|were kind to me]."',
    ),
    (  # a stuck animal
        "[One day|That morning], {he} heard [a cry for help|someone call for help].",
        "A {kind} {A} was stuck [between two rocks|in a deep hole|under a fallen branch] and could not get out.",
        '"[Please help me|Can you help me]!" said the {A}. "[I am stuck|I have been here all night]."',
        "{N} pulled [and pulled|with both hands], but {he} was not strong enough.",
        "?{He} sat down and thought for a while.",
        "Then {he} had an idea. {He} took {his} {C} [scarf|rope|belt] and [tied it to a stick|made a loop out of it].",
        "One, two, three! The {A} was free [at last|again].",
        '"[Thank you, thank you|You saved me]!" said the {A}. To celebrate, they ate {F} together {inP}.',
    ),
    (  # a birthday
        "[It was {his} birthday|Today was {his} birthday], but [nobody had come|everyone seemed to have forgotten it].",
        "{N} [sat down on a stone|walked around alone] and was [very sad|a little sad].",
        'Then a {kind} {A} came by. "[Why do you look so sad|What is the matter]?" it asked.',
        '"It is my birthday, and I am all alone," said {N}.',
        '"[Wait here|Close your eyes]," said the {A}, and [ran away|was gone in a moment].',
        "?{N} waited for a long time and wondered what it would bring.",
        "When {he} [looked up|opened {his} eyes], there was {F} with [candles|a {C} candle] on a table {inP}, and "
        "next to it lay a {C} {T}.",
        '"Happy birthday!" [called|said|shouted] the {A}. It was the best birthday [ever|of all].',
    ),
    (  # fear of the dark
        "{N} was afraid of [the dark|the night]. But one evening {he} stayed too long, and the sun went down {inP}.",
        "[Everything was dark and quiet.|{He} could not see {his} own hands.|Every sound made {him} jump.]",
        "Then two eyes [shone|gleamed] in the dark. It was only a {kind} {A}.",
        '"Don\'t be afraid," said the {A}. "[The night is my friend|I know every stone here]."',
        "The {A} showed {him} the stars, and they [gave a name to each of them|counted them one by one].",
        '?"That one looks like {F}," said {N}, and both of them laughed.',
        "Then the {A} lit a {C} [lantern|lamp] and [brought {him} home|led the way home].",
        "After that night, {N} was not afraid of the dark [any more|anymore].",
    ),
    (  # a race or contest
        "One day there was a big [race|contest] {inP}, and {N} wanted to [win it|take part].",
        "But {he} was [the smallest of all|not very fast], and the others laughed at {him}.",
        'A {kind} {A} [had heard it|saw it all]. "[Let me help you|I will train with you]," it said.',
        "Every morning they [ran together|practised together] until {N} was [quick and strong|ready].",
        "?After each run they ate {F} and made plans.",
        "Then the great day came. {N} [wore a {C} shirt|put on a {C} scarf] and ran like the wind.",
        "{He} did not come first, but {he} [came second|was not last], and the {A} cheered [the loudest|louder than "
        "anyone].",
        '"[You did your best|I am proud of you]," said the {A}, "and that is what counts."',
    ),
    (  # a map and a treasure
        "One day, {N} found [an old map|a map in a bottle|a strange map]. It showed the way to a treasure {inP}.",
        'A {kind} {A} looked over {his} shoulder. "[May I come along|Can I come with you]?" it asked.',
        '"[Of course|Yes, gladly]," said {N}. "Two are better than one."',
        "They [walked for hours|went ten steps to the left and ten steps to the right|followed the {C} line on the "
        "map].",
        "?Once they lost their way, but the {A} [remembered the right path|asked a friendly bird].",
        "[At last they began to dig.|At last they came to a big cross made of stones.] Deep down there was a box.",
        'In the box there was [no gold, only|nothing but] a {C} {T} and a note: "[The real treasure is a friend|Share '
        'this with a friend]."',
        "{N} and the {A} laughed, and then they ate {F} together.",
    ),
    (  # music
        "{N} [loved music|wanted to be a musician], but {he} was too shy to [play|sing] for other people.",
        "So {he} [played {his} flute|sang {his} songs] {inP}, where nobody could hear {him}.",
        "But somebody did hear {him}: a {kind} {A} [sat in the grass and listened|began to dance].",
        '"That was [beautiful|wonderful]," said the {A}. "[Please play it again|Don\'t stop|One more, please]!"',
        "?{N} went as red as {F}, but {he} was proud.",
        "From then on they met every day. {N} made the music, and the {A} [danced|beat the drum].",
        "In the summer they gave a concert. {N} wore a {C} hat, and [everybody clapped|all the people clapped for a "
        "long time].",
        "{N} was not shy any more, for {he} was not alone.",
    ),
    (  # planting
        "One day, {N} found a [tiny|strange|{C}] seed and planted it {inP}.",
        "{He} waited [and waited|a whole week], but nothing grew.",
        'A {kind} {A} [watched {him}|came to have a look]. "[It needs water and time|A seed needs water, sun and a '
        'friend]," it said.',
        "Every morning {N} brought water, and every evening the {A} [kept watch|sang to the seed].",
        "?One night there was a storm, and the {A} covered the little plant with a {T}.",
        "[After some weeks|In the spring], a tall plant with {C} flowers stood there.",
        "[People came from far away to see it.|It was the prettiest plant of all.] {N} and the {A} [were very proud|"
        "sat below it and ate {F}].",
        '"We grew it together," said {N}.',
    ),
    (  # a snowy day and a broken thing
        "[One day|That day], {N} was playing with {his} {C} {T}. Then it fell [down|to the ground] and broke.",
        "{He} [began to cry|was very sad], because it was a present from {his} [grandmother|grandfather|best friend].",
        '"[Let me see|Show it to me]," said a {kind} {A} who was {inP} that day.',
        "The {A} had [glue|string] and [clever|steady] hands, and it worked [all day|for hours].",
        "?{N} helped and made {F} for both of them.",
        "[When it was done|In the evening], the {T} looked [as good as new|better than before].",
        '"How can I thank you?" asked {N}. "[Come and see me again|Be my friend]," said the {A}.',
        "So {N} came back the next day, and the day after that.",
    ),
    (  # a long way home
        "One day, {N} walked too far and [lost {his} way|did not know the way home].",
        "[All paths looked the same.|{He} turned left, then right, then left again, but it was no use.]",
        "{He} sat down {inP} and ate {his} last piece of {F}.",
        'A {kind} {A} came [closer|by]. "[Are you lost|Where do you want to go]?" it asked.',
        '"I want to go home," said {N}. "It is the house with the {C} door."',
        '"[I know that house|I have seen that door]," said the {A}. "[Follow me|Come along]!"',
        "?They crossed a stream, and on the way they found a {T}.",
        "[Before it was dark|An hour later], {N} saw the {C} door, and [{his} mother|{his} father] [hugged {him}|gave "
        "them both some soup].",
    ),
)

AGES = ("little", "young", "brave", "clever", "cheerful", "curious", "shy", "small", "friendly", "quiet")
KINDS = (
    "small",
    "friendly",
    "funny",
    "clever",
    "wise",
    "old",
    "gentle",
    "kind",
    "shy",
    "lonely",
    "big",
    "young",
    "cheerful",
)
SKIES = ("sunny", "rainy", "cold", "warm", "windy", "foggy", "bright", "quiet")

REQUESTS = (
    "[Tell me|Write|Write me|Please write|Can you tell me|I want|Please tell me|Make up] a [short |little |]story "
    "about {n}, {a} and {p}{q}",
    "[Tell me|Write|Please write] a [short |little |]story in which {n} [and {a} are friends|meets {a}|finds {a}|and "
    "{a} meet] {inp}.",
    "[Tell me|Write] a [short |]story about {n} and {a} {inp}.",
    "[Tell me|Write] a [short |]story. The hero is {n}, the animal is {a}, the place is {p}.",
    "[Story|Short story], please: {n}, {a}, {p}.",
    "A [short |]story about {n} and {a}. It should happen {inp}.",
    "I would like [to hear |]a [short |]story about {n} who meets {a} {inp}.",
    "[Use|Write a story with] these three: {n}, {a}, {p}.[| Make a story.]",
    "[Can|Could] you [write|tell me] a [bedtime |short |]story about {n}, {p} and {a}?",
    "Write a story of about 100 words about {n}, {a} and {p}.",
)
REQUESTS_WITHOUT_ALL = (
    "[Tell me|Write|Write me|Please tell me|Can you tell me] a [short |bedtime |little |nice |]story{q}",
    "[Tell me|Write|Write me] a [short |]story about {a}.",
    "[Tell me|Write|Write me] a [short |]story about [{ag} named {n}|{n}|someone called {n}].",
    "[Tell me|Write|Write me|Make] a [short |]story about {ag}.",
    "[Tell me|Write|Write me] a [short |]story about {ag} and {a}.",
    "[Tell me|Write|Write me] a [short |]story that [happens|takes place] {inp}.",
    "[Tell me|Write|Write me] a [short |]story about {n} and {a}.",
    "I am bored. Tell me a story.",
    "A story, please.",
    "[Story time|Do you know a story|Do you know any stories]?",
)
