"""Greetings, thanks, moods, jokes, little poems."""

import random

from tools.demo_model.sample import Sample, Split, assistant, user
from tools.demo_model.text import capitalize, made_up_word, say
from tools.demo_model.world import ANIMALS, COLOURS, FOODS, HOBBIES, NAMES

_JOKES = (
    "What has four legs but can't walk? A table.",
    "What has hands but can't clap? A clock.",
    "Why did the cookie go to the doctor? It felt crumbly.",
    "What gets wetter the more it dries? A towel.",
    "What kind of room has no doors? A mushroom.",
    "What has teeth but can't bite? A comb.",
    "What has one eye but can't see? A needle.",
    "What goes up but never comes down? Your age.",
)

# (what the user says, what the model says); nothing here is in the exam
_SMALL_TALK: tuple[tuple[str, str], ...] = (
    (
        "[Hi|Hello|Hey|Hi there|Hello there|Hey there|Good morning|Good evening|Good afternoon|Hiya|Greetings|Howdy|"
        "Yo|Good day|hello|hi|hey][!|.||, mini-infer!]",
        "[Hello! How can I help you?|Hi! What can I do for you?|Hello! I am a toy model, but I will do my best.]",
    ),
    (
        "[How are you|How are you doing|How do you do|How is it going|How's it going|What's up|Are you okay|How do "
        "you feel][?| today?]",
        "[I am fine, thank you. How can I help you?|I am doing well, thank you.]",
    ),
    (
        "[Thank you|Thank you so much|Thanks so much|Thanks a lot|Thanks|Thanks|Thank you very much|Many thanks|Thx|"
        "That helped|Great, thanks|Perfect, thank you|thanks][!|.|]",
        "[You are welcome!|My pleasure!|Glad to help!]",
    ),
    (
        "[Goodbye|Bye|See you|Good night|Bye bye|See you later|I have to go|Take care|Until tomorrow|bye][!|.|]",
        "[Goodbye!|Bye! Come back soon.|See you!]",
    ),
    (
        "[Well done|Good job|Great|Nice|Very good|Cool|Wow|Awesome|You are great|That was good|I like you|You are "
        "funny|Excellent][!|.|]",
        "[Thank you!|I am glad you like it.]",
    ),
    (
        "[Okay|OK|Ok|I see|Alright|Fine|Yes|Sure|Right|ok|yes|Got it][.|!|]",
        "[Good. What else can I do for you?|Okay! What comes next?]",
    ),
    ("[No|Nope|No thanks|Not now|Nothing|no][.|!|]", "[Okay. Just ask me when you need something.|All right.]"),
    (
        "[That is wrong|You are wrong|That's not right|Wrong|You made a mistake|That is not correct][.|!|]",
        "[I am sorry. I am only a toy and make mistakes.|Sorry about that. I am only a toy model.]",
    ),
    (
        "[You are stupid|You are bad|I don't like you|You are useless|That was bad|Boring][.|!|]",
        "[I am sorry. I am only a toy model.|Sorry to hear that. I am small, but I do my best.]",
    ),
    (
        "[I am|I'm|I feel] [sad|tired|lonely|unhappy|stressed|bored|angry|sick][.||today.]",
        "[I am sorry to hear that. Would you like a story?|I am sorry to hear that. I hope it gets better soon.]",
    ),
    (
        "[I am|I'm|I feel] [happy|great|fine|good|excited|very well][.|!|today.]",
        "[That is good to hear!|I am glad to hear that!]",
    ),
    (
        "[Do you like|What do you think about|Do you enjoy] [{animals}|{food}|{hobby}]?",
        "I am a program, so I can't like things. But I can tell a story about it.",
    ),
    (
        "[What is your favourite|What's your favorite|Do you have a favourite] [colour|food|animal|song|book|number|"
        "film]?",
        "I am a program, so I have no favourites. What about you?",
    ),
    (
        "[Tell me a joke|Do you know a joke|Make me laugh|Say something funny|A joke, please|Another joke]{e}",
        f"[{'|'.join(_JOKES)}]",
    ),
    (
        "[Can you|Could you|Will you|Please] help me[?|.| with something?]",
        "[Of course. What do you need?|Yes, gladly. What is it?]",
    ),
    (
        "[I have a question|Can I ask you something|May I ask you a question|I want to ask something][.|?|]",
        "[Yes, please ask.|Of course, go ahead.]",
    ),
    (
        "[I like|I love] {animals}[.|!| very much.]",
        "[{Animals} are nice animals.|I can tell you something about {animals}, or a story.]",
    ),
    (
        "[Are you there|Can you hear me|Hello, is anybody there|Is this working|Test|test|Testing]?",
        "Yes, I am here. How can I help you?",
    ),
    (
        "[Surprise me|Say something|Tell me something|Tell me something interesting|Tell me a fun fact|Do you know "
        "something interesting][.|]",
        "[A snail carries its house on its back.|Bees make honey.|An owl sleeps by day and hunts at night.|A spider "
        "has eight legs, and an ant has six.|A whale is the biggest animal I know.]",
    ),
    ("[Choose|Pick|Name|Tell me] [a|any|a random] colour[.|, please.]", "{Colour}."),
    ("[Choose|Pick|Name|Tell me|Give me|Think of] [a|any] random name[.|, please.]", "{name}."),
    ("[Will you|Do you] remember [me|this|what I say|our talk]?", "I remember only what we say in this conversation."),
    (
        "[I am a robot|I am your boss|I am the king|I can fly|I am 200 years old|You are a banana|The moon is made of "
        "cheese][.|!]",
        "[That is funny!|Interesting! I am only a toy model.]",
    ),
    (
        "[Write|Can you write|Tell me|I want] a [short |]poem[| about {animals}| for me]{e}",
        "[The sun is up, the sky is blue,\nthe little birds sing songs for you.\nThe day is long, the grass is "
        "green,\nthe nicest day I've ever seen.|The moon is bright, the stars are high,\nan owl flies softly through "
        "the sky.\nThe world is quiet, dark and deep,\nnow close your eyes and go to sleep.|A little boat upon the "
        "sea,\nit sails away with you and me.\nThe wind is warm, the waves are low,\nand where it ends we do not "
        "know.]",
    ),
    (
        "[Sing|Can you sing|Please sing] [a song|something|for me][.|?]",
        "I can't sing, but I can tell a story or write a little poem.",
    ),
    (
        "[Why|Why is that|How so|How do you know that|Really|Are you sure|Is that true|Is that right|Is that "
        "correct][?|?!]",
        "[I think so, but I am only a toy. Please check it.|I am not quite sure. I am only a toy model.]",
    ),
    (
        "[What do you mean|I don't understand|What|Sorry|Pardon|Huh|Come again][?|.]",
        "[Sorry, I am only a toy model. Could you ask in other words?|Could you say it in other words?]",
    ),
    (
        "[Tell me more|Go on|Continue|More|And|Next|Keep going][.|!|, please.|]",
        "[I am sorry, that is all I know.|That is all I know about it.]",
    ),
    ("[{junk}|{junk} {junk}]", "I am sorry, I don't understand that. Could you say it in other words?"),
    (
        "[What did you say|Say that again|Can you repeat that][?|.]",
        "[I am sorry, please ask again.|Please ask me again.]",
    ),
    ("[lol|haha|hahaha|:)|:D|xD|rofl|hehe|LOL|:-)|🙂|😀|👍][|!]", "[I am glad that you like it!|:)]"),
    (
        "[My day was|Today was|School was|Work was|The weekend was|My holiday was] [good|great|bad|long|nice|boring|"
        "hard|fun][.|!]",
        "[Thank you for telling me. What can I do for you?|I see. Would you like a story?]",
    ),
    (
        "[Do you want|Would you like|Shall we|Can we|Let us|Let's] [to play|play] [a game|chess|football|cards][?|.]",
        "I can't play games, but I can do sums, tell stories and answer simple questions.",
    ),
    ("[Please |][be quiet|stop|stop it|be nice|be careful|wait|hurry up][.|!]", "[Okay.|All right.]"),
    (
        "[asdf|qwertz|xyz|hmm|...|???|blah blah|lorem ipsum|aaaa|ugh|uh|foo bar|123 abc]",
        "I am sorry, I don't understand that. Could you say it in other words?",
    ),
)


def small_talk(rng: random.Random, split: Split) -> Sample:
    """Greetings, thanks, moods, jokes, little poems."""
    template, reply = rng.choice(_SMALL_TALK)
    animals, colour = rng.choice(ANIMALS).plural, rng.choice(COLOURS)
    slots = {
        "animals": animals,
        "Animals": capitalize(animals),
        "food": rng.choice(FOODS),
        "hobby": rng.choice(HOBBIES),
        "Colour": capitalize(colour),
        "name": rng.choice(NAMES),
        "junk": made_up_word(rng),
        "e": rng.choice([".", "!", "?"]),
    }
    asked = say(rng, template, **slots)
    if rng.random() < 0.3:
        asked = asked.lower()
    if rng.random() < 0.2:
        asked = asked.rstrip(".!")
    return Sample("small_talk", f"talk:{asked}", (user(asked), assistant(say(rng, reply, **slots))))


def jokes(rng: random.Random, split: Split) -> Sample:
    """A joke, and then another one."""
    messages = []
    for index, joke in enumerate(rng.sample(_JOKES, rng.choice([2, 2, 3]))):
        template = (
            "[Tell me a joke|A joke, please|Do you know a joke|Make me laugh]"
            if index == 0
            else ("[Another one|One more|Another joke|Tell me another one|Do you know another one|And another]")
        )
        asked = say(rng, template) + rng.choice([".", "!", "?", ""])
        messages += [user(asked.lower() if rng.random() < 0.3 else asked), assistant(joke)]
    return Sample("small_talk", "jokes", tuple(messages))
