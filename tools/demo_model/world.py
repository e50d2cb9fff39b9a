"""The small closed world the model knows: its people, animals, places and things."""

from dataclasses import dataclass

from tools.demo_model.text import words

GIRLS = words("""
    Mia Zoe Anna Lily Emma Clara Nora Ruby Ella Sara Ida Maya Lucy Rosa Alice Eva Iris Hana Leila Tara Nina Olga
    Vera Yuki Amina Freya Greta Holly Jane Kate Laura Maria Olivia Paula Rita Sophie Tina Wanda Julia Helen
    Priya Fatima Ingrid Chloe Daisy Elena Flora Gina Heidi Ivy Jenny Kira Lena Molly Nadia Petra Rachel Stella
    Susan Amy
""")
BOYS = words("""
    Tom Ben Max Leo Sam Finn Noah Paul Jack Omar Hugo Ivan Karl Luca Milo Nils Otto Pete Ravi Theo Adam Bruno
    Carlos David Emil Felix George Henry Isaac Jonas Kofi Liam Martin Nico Oscar Peter Quinn Robert Simon Tim
    Victor Will Yusuf Zack Alex Bill Chris Daniel Eric Frank Gabriel Hassan Igor James Kenji Lars Marco Nathan
    Owen John
""")
NAMES = GIRLS + BOYS
GENDER = {**dict.fromkeys(GIRLS, "girl"), **dict.fromkeys(BOYS, "boy")}


@dataclass(frozen=True)
class Animal:
    """What the world knows about one animal; ``size`` only orders the animals."""

    name: str
    plural: str
    colour: str
    food: str
    home: str
    sound: str  # the verb phrase, "says moo"; empty if it is silent
    legs: int
    size: int
    young: str


def _animals(table: str) -> tuple[Animal, ...]:
    rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
    return tuple(Animal(n, p, c, f, h, s, int(legs), int(size), y) for n, p, c, f, h, s, legs, size, y in rows)


ANIMALS = _animals("""
cow | cows | brown and white | grass | on a farm | moo | 4 | 80 | calf
horse | horses | brown | hay | in a stable | neigh | 4 | 82 | foal
pig | pigs | pink | corn | on a farm | oink | 4 | 62 | piglet
sheep | sheep | white | grass | on a farm | baa | 4 | 60 | lamb
goat | goats | grey | leaves | on a farm | meh | 4 | 58 | kid
dog | dogs | brown | meat | in a house | woof | 4 | 46 | puppy
cat | cats | grey | fish | in a house | meow | 4 | 36 | kitten
mouse | mice | grey | cheese | in a hole | squeak | 4 | 10 | pup
rabbit | rabbits | brown | carrots | in a burrow | | 4 | 32 | kit
fox | foxes | red | berries | in a den | | 4 | 42 | cub
bear | bears | brown | honey | in a cave | growl | 4 | 84 | cub
wolf | wolves | grey | meat | in a den | howl | 4 | 56 | cub
deer | deer | brown | leaves | in a forest | | 4 | 72 | fawn
owl | owls | brown | mice | in a hollow tree | hoot | 2 | 28 | owlet
duck | ducks | white | bread | on a pond | quack | 2 | 30 | duckling
hen | hens | white | seeds | in a coop | cluck | 2 | 29 | chick
frog | frogs | green | flies | in a pond | croak | 4 | 12 | tadpole
bee | bees | yellow and black | nectar | in a hive | buzz | 6 | 2 | larva
ant | ants | black | crumbs | in an anthill | | 6 | 1 | larva
spider | spiders | black | flies | in a web | | 8 | 3 | spiderling
fish | fish | silver | worms | in the water | | 0 | 14 | fry
snake | snakes | green | eggs | under a rock | hiss | 0 | 40 | hatchling
lion | lions | golden | meat | in the savanna | roar | 4 | 76 | cub
tiger | tigers | orange and black | meat | in the jungle | roar | 4 | 78 | cub
elephant | elephants | grey | leaves | in the savanna | trumpet | 4 | 96 | calf
monkey | monkeys | brown | bananas | in the jungle | | 4 | 48 | infant
parrot | parrots | green and red | nuts | in the jungle | squawk | 2 | 24 | chick
penguin | penguins | black and white | fish | on the ice | | 2 | 50 | chick
whale | whales | blue | krill | in the ocean | | 0 | 99 | calf
turtle | turtles | green | lettuce | by the water | | 4 | 34 | hatchling
hedgehog | hedgehogs | brown | beetles | under the leaves | | 4 | 18 | hoglet
squirrel | squirrels | red | nuts | in a tree | | 4 | 20 | kit
camel | camels | sandy brown | dry grass | in the desert | | 4 | 88 | calf
giraffe | giraffes | yellow and brown | leaves | in the savanna | | 4 | 92 | calf
snail | snails | brown | lettuce | in its shell | | 0 | 4 | hatchling
""")
ANIMAL = {animal.name: animal for animal in ANIMALS}

STORY_ONLY_ANIMALS = ("dragon", "unicorn", "otter", "badger", "beaver", "swan", "donkey", "pony", "kangaroo", "panda",
                      "koala",
                      "dolphin", "seal", "crow", "eagle", "robin", "hamster", "lizard", "moose", "raccoon", "zebra",
                          "crab",
                      "goose", "mole", "butterfly", "dinosaur", "lamb", "puppy", "kitten", "duckling")
STORY_ANIMALS = tuple(a.name for a in ANIMALS) + STORY_ONLY_ANIMALS

ROLES = {  # other heroes of stories, and whether they are a "he"
    "princess": False, "prince": True, "queen": False, "king": True, "knight": True, "wizard": True, "witch": False,
    "fairy": False, "pirate": True, "robot": True, "giant": True, "astronaut": False, "detective": False, "baker": True,
    "sailor": True, "farmer": True, "painter": False, "dancer": False,
}
# Places of stories, each with the preposition it takes. No story sentence uses these words for anything else.
PLACES = {
    "forest": "in", "beach": "on", "castle": "in", "village": "in", "desert": "in", "mountain": "on", "farm": "on",
    "harbour": "in", "jungle": "in", "library": "in", "market": "at", "meadow": "in", "park": "in", "valley": "in",
    "lighthouse": "at", "mill": "at", "orchard": "in", "island": "on", "swamp": "in", "lake": "at", "river": "at",
    "museum": "in", "school": "at", "zoo": "at", "bakery": "in", "cave": "in", "circus": "at", "city": "in",
    "garden": "in", "train station": "at", "playground": "on", "tower": "in", "bridge": "on", "waterfall": "at",
    "cottage": "in", "airport": "at", "palace": "in", "volcano": "at", "lagoon": "at", "canyon": "in",
}
PLACE_WORDS = ("old", "quiet", "little", "big", "green", "misty", "sunny", "hidden", "famous", "windy")

COLOURS = ("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "golden",
           "silver", "violet", "turquoise")
FOODS = ("pizza", "soup", "pasta", "rice", "bread", "cheese", "salad", "pancakes", "apple pie", "chocolate", "noodles",
         "sushi", "tacos", "curry", "ice cream", "potatoes", "omelette", "burgers", "strawberries", "porridge",
             "waffles",
         "dumplings", "cake", "toast", "beans")
FRUITS = ("apple", "banana", "cherry", "grape", "lemon", "mango", "orange", "peach", "pear", "plum", "melon", "kiwi")
VEGETABLES = ("carrot", "potato", "tomato", "onion", "pea", "bean", "cabbage", "pumpkin", "leek", "cucumber", "spinach",
              "radish")
TOOLS_AT_HOME = ("hammer", "saw", "drill", "ladder", "screwdriver", "wrench", "shovel", "rake", "brush", "needle")
FURNITURE = ("chair", "table", "bed", "sofa", "shelf", "desk", "lamp", "bench", "stool", "wardrobe")
CLOTHES = ("shirt", "hat", "coat", "sock", "shoe", "glove", "scarf", "dress", "jacket", "belt")
VEHICLES = ("car", "bus", "train", "bike", "boat", "plane", "truck", "tram", "ship", "van")
INSTRUMENTS = ("piano", "guitar", "violin", "flute", "drum", "trumpet", "harp", "cello", "clarinet", "accordion")
TOYS = ("kite", "ball", "doll", "puzzle", "yo-yo", "robot", "drum", "boat", "whistle", "teddy bear")
THINGS = ("kite", "hat", "key", "ball", "book", "scarf", "lantern", "basket", "bell", "map", "ring", "cup", "umbrella",
          "whistle", "backpack", "coat", "mirror", "blanket", "necklace", "box")
HOBBIES = ("painting", "swimming", "chess", "reading", "cooking", "dancing", "cycling", "singing", "hiking", "fishing",
           "skating", "knitting", "running", "drawing", "gardening", "juggling", "climbing", "sailing")
JOBS = ("baker", "teacher", "nurse", "farmer", "pilot", "painter", "doctor", "gardener", "cook", "carpenter", "singer",
        "writer", "sailor", "plumber", "engineer", "librarian", "tailor", "driver", "dentist", "musician")
SPORTS = ("football", "tennis", "basketball", "hockey", "volleyball", "golf", "rugby", "badminton", "cricket", "judo")
FLOWERS = ("rose", "tulip", "daisy", "lily", "sunflower", "violet", "poppy", "orchid")
TREES = ("oak", "pine", "birch", "maple", "willow", "ash", "elm", "beech")
ROOMS = ("kitchen", "bathroom", "bedroom", "hall", "living room", "cellar", "attic", "garage", "office", "balcony")
PET_NAMES = ("Bo", "Rex", "Luna", "Fluffy", "Spot", "Coco", "Bella", "Charlie", "Daisy", "Milo", "Pepper", "Shadow",
             "Ginger", "Oreo", "Snowy", "Tiger", "Ziggy", "Bubbles", "Biscuit", "Nala", "Simba", "Hazel", "Toffee",
                 "Pip")
PETS = ("cat", "dog", "rabbit", "fish", "parrot", "hamster", "turtle", "mouse", "pony", "snake", "lizard", "goat")
CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Oslo", "Lisbon", "Prague", "Dublin", "Athens",
          "Cairo",
          "Tokyo", "Kyoto", "Seoul", "Delhi", "Mumbai", "Sydney", "Toronto", "Boston", "Chicago", "Denver", "Seattle",
          "New York", "San Francisco", "Mexico City", "Lima", "Nairobi", "Lagos", "Warsaw", "Helsinki", "Stockholm",
          "Copenhagen", "Brussels", "Zurich", "Geneva", "Milan", "Munich", "Hamburg", "Lyon", "Porto", "Istanbul",
          "Bangkok", "Singapore", "Jakarta", "Manila", "Hanoi", "Beijing", "Shanghai", "Cape Town")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
SEASONS = ("spring", "summer", "autumn", "winter")

OPPOSITES = tuple(tuple(pair.split("-")) for pair in words("""
    big-small hot-cold up-down left-right day-night old-young fast-slow happy-sad open-closed full-empty
    light-dark hard-soft high-low long-short wet-dry good-bad early-late loud-quiet clean-dirty strong-weak
    rich-poor thick-thin wide-narrow near-far in-out on-off yes-no first-last begin-end win-lose push-pull
    buy-sell give-take love-hate true-false sweet-sour smooth-rough sharp-blunt deep-shallow heavy-light
    safe-dangerous easy-difficult top-bottom front-back inside-outside before-after always-never more-less
    brave-scared cheap-expensive friend-enemy
"""))

COLOUR_OF = {
    "grass": "green", "snow": "white", "the sky": "blue", "a banana": "yellow", "a strawberry": "red", "coal": "black",
    "an orange": "orange", "a carrot": "orange", "milk": "white", "the sun": "yellow", "a lemon": "yellow",
    "a tomato": "red", "chocolate": "brown", "a leaf": "green", "the sea": "blue", "a cucumber": "green",
    "a flamingo": "pink", "a raven": "black", "a fire truck": "red", "salt": "white", "a pumpkin": "orange",
    "a violet": "purple", "a cherry": "red", "a cloud": "white", "the night": "black", "spinach": "green", "gold":
        "golden",
}

CATEGORIES = {
    "fruits": FRUITS, "vegetables": VEGETABLES, "colours": COLOURS[:10], "pieces of furniture": FURNITURE,
    "clothes": CLOTHES, "vehicles": VEHICLES, "musical instruments": INSTRUMENTS, "toys": TOYS, "sports": SPORTS,
    "flowers": FLOWERS, "trees": TREES, "rooms": ROOMS, "tools": TOOLS_AT_HOME, "jobs": JOBS, "hobbies": HOBBIES,
    "animals": tuple(a.name for a in ANIMALS), "days of the week": DAYS, "months": MONTHS, "seasons": SEASONS,
    "farm animals": ("cow", "horse", "pig", "sheep", "goat", "hen", "duck"),
    "pets": ("cat", "dog", "rabbit", "hamster", "fish", "parrot"), "foods": FOODS,
    "birds": ("owl", "duck", "hen", "parrot", "penguin"), "insects": ("bee", "ant"), "names": NAMES[:20] + NAMES[70:90],
}
SINGULAR = {
    "fruits": "a fruit", "vegetables": "a vegetable", "pieces of furniture": "a piece of furniture",
    "vehicles": "a vehicle", "musical instruments": "a musical instrument", "sports": "a sport", "flowers": "a flower",
    "trees": "a tree", "rooms": "a room", "jobs": "a job", "animals": "an animal", "colours": "a colour",
}

WORDS = tuple(sorted({w for w in (
    *(a.name for a in ANIMALS), *FRUITS, *VEGETABLES, *FURNITURE, *CLOTHES, *VEHICLES, *COLOURS, *INSTRUMENTS, *TREES,
    *FLOWERS, *(w for pair in OPPOSITES for w in pair), *JOBS, *THINGS, "house", "water", "fire", "sun", "moon", "star",
    "tree", "flower", "bird", "hand", "head", "foot", "door", "window", "book", "paper", "friend", "school", "hello",
    "world", "model", "token", "apple", "king", "queen", "money", "music", "night", "stone", "river") if " " not in w}))

FACTS = (  # question template, full answer, short answer
    ("How many days [are there in a|are in a|does a] week[| have]", "A week has 7 days.", "7"),
    ("How many months [are there in a|are in a|does a] year[| have]", "A year has 12 months.", "12"),
    ("How many hours [are there in a|are in a|does a] day[| have]", "A day has 24 hours.", "24"),
    ("How many minutes [are there in an|are in an|does an] hour[| have]", "An hour has 60 minutes.", "60"),
    ("How many seconds [are there in a|are in a|does a] minute[| have]", "A minute has 60 seconds.", "60"),
    ("How many letters [are there in the|are in the|does the] alphabet[| have]", "The alphabet has 26 letters.", "26"),
    ("How many seasons [are there|are in a year|does a year have]", "There are 4 seasons.", "4"),
    ("How many wheels does a [bike|bicycle] have", "A bike has 2 wheels.", "2"),
    ("How many wheels does a car have", "A car has 4 wheels.", "4"),
    ("How many fingers [are on one|does one|are there on a] hand[| have]", "One hand has 5 fingers.", "5"),
    ("How many sides does a triangle have", "A triangle has 3 sides.", "3"),
    ("How many sides does a square have", "A square has 4 sides.", "4"),
    ("What comes after [Z|the letter Z]", "Nothing comes after Z. It is the last letter.", ""),
    ("What are the [four seasons|seasons]", "The four seasons are spring, summer, autumn and winter.", ""),
    ("What [day is the first|is the first] day of the week", "The first day of the week is Monday.", "Monday"),
    ("What is the last day of the week", "The last day of the week is Sunday.", "Sunday"),
    ("What is the first month of the year", "The first month of the year is January.", "January"),
    ("What is the last month of the year", "The last month of the year is December.", "December"),
    ("What is the first letter of the alphabet", "The first letter of the alphabet is A.", "A"),
    ("What is the last letter of the alphabet", "The last letter of the alphabet is Z.", "Z"),
    ("[Can fish swim|Do fish swim]", "Yes, fish can swim.", "Yes"),
    ("Can [ducks|owls|parrots|bees] fly", "Yes, they can fly.", "Yes"),
    ("Can [cows|pigs|horses|dogs|elephants|penguins] fly", "No, they can't fly.", "No"),
    ("Can [cats|dogs|snails|chairs|stones] [read|write|sing]", "No, they can't do that.", "No"),
    ("Is [fire|the sun|hot soup] [hot|cold]", "It is hot.", "hot"),
    ("Is [ice|snow|an ice cube] [hot|cold]", "It is cold.", "cold"),
    ("What do bees make", "Bees make honey.", "honey"),
    ("What do hens lay", "Hens lay eggs.", "eggs"),
    ("What do cows give", "Cows give milk.", "milk"),
    ("What falls from the clouds", "Rain falls from the clouds.", "rain"),
    ("What shines at night", "The moon and the stars shine at night.", "the moon"),
    ("What shines [by|during the] day", "The sun shines by day.", "the sun"),
    ("What do you use an umbrella for", "An umbrella keeps you dry in the rain.", ""),
    ("What do you use a hammer for", "A hammer drives nails into wood.", ""),
    ("What do you use a key for", "A key opens a lock.", ""),
    ("Where do you sleep", "People sleep in a bed. I am a program, so I never sleep.", ""),
)
