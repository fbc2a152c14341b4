"""Small facts for everyday questions. Plain data; dialogues.py puts them into words."""

# One wording per line reads better than wrapped calls, hence no line limit and no formatter here.
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

# animal: (sound verb, young, legs, home, food, short description)
ANIMAL_FACTS: dict[str, tuple[str, str, int, str, str, str]] = {
    "cat": ("meows", "kitten", 4, "a house", "fish and meat", "a small furry animal that likes to sleep and hunt mice"),
    "dog": ("barks", "puppy", 4, "a house or a kennel", "meat and bones", "a friendly animal that people keep as a pet"),
    "cow": ("moos", "calf", 4, "a farm", "grass", "a large farm animal that gives milk"),
    "horse": ("neighs", "foal", 4, "a stable", "grass and hay", "a big strong animal that people can ride"),
    "sheep": ("bleats", "lamb", 4, "a meadow", "grass", "a farm animal that gives wool"),
    "pig": ("grunts", "piglet", 4, "a farm", "roots, corn and scraps", "a clever farm animal that likes mud"),
    "goat": ("bleats", "kid", 4, "farms and mountains", "grass and leaves", "a farm animal that climbs very well"),
    "duck": ("quacks", "duckling", 2, "a pond", "plants and insects", "a bird that swims on water"),
    "hen": ("clucks", "chick", 2, "a farm", "seeds and worms", "a bird that lays eggs"),
    "owl": ("hoots", "owlet", 2, "a tree", "mice", "a bird that hunts at night"),
    "bee": ("buzzes", "larva", 6, "a hive", "nectar and pollen", "an insect that makes honey"),
    "frog": ("croaks", "tadpole", 4, "a pond", "insects", "a small green animal that can jump far"),
    "lion": ("roars", "cub", 4, "the grasslands of Africa", "meat", "a large wild cat with a strong voice"),
    "bear": ("growls", "cub", 4, "forests and mountains", "berries, fish and honey", "a big heavy animal with thick fur"),
    "wolf": ("howls", "pup", 4, "forests", "meat", "a wild animal that lives in a pack"),
    "elephant": ("trumpets", "calf", 4, "Africa and Asia", "leaves and grass", "the largest land animal, with a long trunk"),
    "mouse": ("squeaks", "pup", 4, "fields and houses", "seeds and grain", "a tiny animal with a long tail"),
    "spider": ("makes no sound", "spiderling", 8, "a web", "insects", "a small animal with eight legs that spins webs"),
    "rabbit": ("is very quiet", "kit", 4, "a burrow", "grass and carrots", "a small animal with long ears"),
    "penguin": ("squawks", "chick", 2, "cold southern coasts", "fish", "a bird that swims well but cannot fly"),
    "tiger": ("roars", "cub", 4, "the forests of Asia", "meat", "a big wild cat with orange fur and black stripes"),
    "giraffe": ("hums", "calf", 4, "the plains of Africa", "leaves", "the tallest animal in the world"),
    "whale": ("sings", "calf", 0, "the sea", "krill and fish", "a huge animal that lives in the sea"),
    "snake": ("hisses", "hatchling", 0, "grass, forests and deserts", "mice and frogs", "a long animal without legs"),
    "monkey": ("chatters", "infant", 4, "warm forests", "fruit and leaves", "a clever animal that climbs trees"),
    "ant": ("makes no sound", "larva", 6, "a nest in the ground", "seeds and sweet things", "a tiny insect that works very hard"),
}  # fmt: skip

COLOURS: dict[str, str] = {
    "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow", "blood": "red", "coal": "black",
    "a lemon": "yellow", "a tomato": "red", "milk": "white", "an orange": "orange", "a carrot": "orange",
    "chocolate": "brown", "a crow": "black", "an elephant": "grey", "a leaf in summer": "green", "the sea": "blue",
    "a strawberry": "red", "a pig": "pink", "the sun": "yellow", "a pea": "green", "butter": "yellow",
    "a polar bear": "white", "a cherry": "red", "wood": "brown", "salt": "white", "a fire engine": "red",
}  # fmt: skip
MIXES: dict[tuple[str, str], str] = {
    ("blue", "yellow"): "green", ("red", "yellow"): "orange", ("red", "blue"): "purple",
    ("red", "white"): "pink", ("black", "white"): "grey",
}  # fmt: skip
OPPOSITES: dict[str, str] = {
    "hot": "cold", "big": "small", "tall": "short", "fast": "slow", "happy": "sad", "day": "night", "up": "down",
    "left": "right", "old": "young", "light": "dark", "wet": "dry", "full": "empty", "hard": "soft", "early": "late",
    "open": "closed", "rich": "poor", "loud": "quiet", "strong": "weak", "clean": "dirty", "first": "last",
    "good": "bad", "heavy": "light", "near": "far", "easy": "difficult", "thick": "thin", "win": "lose",
}  # fmt: skip
CAPITALS: dict[str, str] = {
    "France": "Paris", "England": "London", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
    "Japan": "Tokyo", "China": "Beijing", "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens",
    "Portugal": "Lisbon", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm", "Austria": "Vienna",
    "Canada": "Ottawa", "Australia": "Canberra", "Poland": "Warsaw", "Hungary": "Budapest", "Denmark": "Copenhagen",
    "Finland": "Helsinki", "the United States": "Washington, D.C.", "India": "New Delhi", "Kenya": "Nairobi",
    "Cuba": "Havana", "Peru": "Lima", "Belgium": "Brussels", "Scotland": "Edinburgh", "Wales": "Cardiff",
}  # fmt: skip
FOODS: dict[str, tuple[str, str]] = {
    "an apple": ("fruit", "sweet"), "a banana": ("fruit", "sweet"), "a lemon": ("fruit", "sour"),
    "a carrot": ("vegetable", "a little sweet"), "a potato": ("vegetable", "mild"), "a pear": ("fruit", "sweet"),
    "an onion": ("vegetable", "sharp"), "a grape": ("fruit", "sweet"), "a cabbage": ("vegetable", "mild"),
    "a strawberry": ("fruit", "sweet"), "a plum": ("fruit", "sweet"), "spinach": ("vegetable", "a little bitter"),
    "a pea": ("vegetable", "a little sweet"), "a peach": ("fruit", "sweet"), "an orange": ("fruit", "sweet and sour"),
}  # fmt: skip
MADE_OF: dict[str, str] = {
    "bread": "flour, water and yeast", "cheese": "milk", "butter": "cream", "paper": "wood", "glass": "sand",
    "wine": "grapes", "jam": "fruit and sugar", "pancakes": "flour, milk and eggs", "an omelette": "eggs",
    "a candle": "wax", "honey": "the nectar of flowers", "a brick": "clay", "a sweater": "wool",
    "chocolate": "cocoa beans", "soup": "water, vegetables and sometimes meat", "ice": "frozen water",
}  # fmt: skip
JOBS: dict[str, str] = {
    "teacher": "helps people to learn", "doctor": "helps people who are ill", "baker": "makes bread and cakes",
    "farmer": "grows food and keeps animals", "pilot": "flies a plane", "firefighter": "puts out fires",
    "carpenter": "makes things out of wood", "tailor": "makes clothes", "nurse": "takes care of sick people",
    "postman": "brings letters", "cook": "makes meals", "painter": "paints pictures or houses",
    "sailor": "works on a ship", "gardener": "looks after plants", "dentist": "takes care of teeth",
    "writer": "writes books", "shepherd": "looks after sheep", "singer": "sings songs", "builder": "builds houses",
    "fisherman": "catches fish", "judge": "decides what is right by the law", "librarian": "looks after books",
}  # fmt: skip
USES: dict[str, str] = {
    "a spoon": "eat soup", "a knife": "cut things", "an umbrella": "stay dry in the rain", "a clock": "tell the time",
    "a pen": "write", "a broom": "sweep the floor", "a key": "open a door", "a lamp": "make light",
    "a hammer": "drive in nails", "soap": "wash your hands", "a bed": "sleep", "a needle": "sew", "a map": "find the way",
    "scissors": "cut paper", "a cup": "drink tea", "a bridge": "cross a river", "a towel": "dry yourself",
    "a coat": "keep warm", "a telephone": "talk to someone far away", "a boat": "travel on water",
}  # fmt: skip
FAMILY: dict[str, str] = {
    "mother's mother": "grandmother", "father's father": "grandfather", "mother's sister": "aunt",
    "father's brother": "uncle", "aunt's son": "cousin", "brother's daughter": "niece", "sister's son": "nephew",
    "father's mother": "grandmother", "mother's father": "grandfather", "uncle's daughter": "cousin",
    "mother's brother": "uncle", "father's sister": "aunt", "parents' son": "brother", "parents' daughter": "sister",
}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip
SEASONS: dict[str, str] = {
    "spring": "the days get longer and the flowers begin to bloom",
    "summer": "it is warm and the days are long",
    "autumn": "the leaves change colour and fall from the trees",
    "winter": "it is cold and the nights are long",
}
WHY: dict[str, str] = {
    "Why is the sky blue": "The air scatters blue light from the sun more than red light, so the sky looks blue.",
    "Why do we sleep": "We sleep so that the body and the mind can rest and recover.",
    "Why does it rain": "Water rises from the sea into the air, forms clouds, and falls down again as rain.",
    "Why do leaves fall": "In autumn many trees drop their leaves to save water during the winter.",
    "Why do we eat": "We eat because food gives the body energy and helps it to grow.",
    "Why do birds fly south": "Many birds fly south in autumn to find warm weather and food.",
    "Why is ice cold": "Ice is frozen water, and water only freezes when it is very cold.",
    "Why do we brush our teeth": "We brush our teeth to keep them clean and healthy.",
    "Why do cats purr": "Cats often purr when they are calm and happy.",
    "Why does the moon shine": "The moon shines because it reflects the light of the sun.",
    "Why do plants need light": "Plants use light to make their own food from water and air.",
    "Why is the sea salty": "Rivers carry salt from the rocks into the sea, and it stays there.",
    "Why do we have seasons": "We have seasons because the Earth is tilted as it travels around the sun.",
    "Why do people laugh": "People laugh when something is funny, and because laughing together feels good.",
}
WHAT: dict[str, str] = {
    "the sun": "The sun is a star. It gives light and warmth to the Earth.",
    "the moon": "The moon is a ball of rock that travels around the Earth.",
    "rain": "Rain is water that falls from the clouds.",
    "a river": "A river is a long stream of water that flows to a lake or to the sea.",
    "a mountain": "A mountain is a very high piece of land.",
    "an island": "An island is a piece of land with water all around it.",
    "a star": "A star is a huge ball of hot gas that shines in the sky.",
    "a desert": "A desert is a very dry place where few plants grow.",
    "a forest": "A forest is a large area covered with trees.",
    "snow": "Snow is frozen water that falls from the clouds in soft white flakes.",
    "a rainbow": "A rainbow is a band of colours in the sky. It appears when the sun shines through rain.",
    "a computer": "A computer is a machine that works with numbers, words and pictures.",
    "a language model": "A language model is a program that has learned from many texts which words come next.",
    "music": "Music is sound that people make for joy, with their voices or with instruments.",
    "a friend": "A friend is someone you like and trust.",
    "a library": "A library is a place where you can read and borrow books.",
    "a planet": "A planet is a large round body that travels around a star. The Earth is a planet.",
    "the Earth": "The Earth is the planet we live on. It travels around the sun once a year.",
    "wind": "Wind is moving air.",
    "a tree": "A tree is a tall plant with a trunk, branches and leaves.",
}
ADVICE: dict[str, tuple[str, ...]] = {
    "sad": ("I am sorry to hear that. Do you want to talk about it?", "I am sorry you feel sad. A walk or a talk with a friend may help.",
            "That sounds hard. Be kind to yourself today."),
    "tired": ("Then you should rest a little.", "Maybe a short nap would help.", "Go to bed early tonight. Sleep is good for you."),
    "hungry": ("Then it is time to eat something. How about some soup or a sandwich?", "Maybe you could eat an apple or make some pancakes.",
               "You should have something to eat."),
    "happy": ("I am glad to hear that! What made you happy?", "That is wonderful!", "How nice! I am happy for you."),
    "bored": ("You could read a book, draw a picture or go for a walk.", "Shall I tell you a story?", "Why not call a friend or learn something new?"),
    "cold": ("Put on a warm sweater and have a cup of tea.", "A blanket and something hot to drink will help."),
    "ill": ("I am sorry to hear that. Rest, drink water, and see a doctor if it gets worse.", "Get well soon! Please ask a doctor if you feel very ill."),
    "angry": ("Take a deep breath. Do you want to tell me what happened?", "That can happen. Sometimes it helps to wait a moment before you speak."),
    "lonely": ("I am sorry to hear that. You can talk with me, and maybe call a friend too.", "That is not easy. Perhaps you could visit somebody today."),
    "nervous": ("Breathe slowly. You can do it.", "It is normal to feel nervous. Take it one step at a time."),
    "thirsty": ("Have a glass of water.", "Then you should drink something. Water is best."),
}  # fmt: skip
JOKES = (
    "Why did the chicken cross the road? To get to the other side!",
    "What do you call a bear with no teeth? A gummy bear!",
    "Why did the book go to the doctor? It had too many problems!",
    "What has hands but cannot clap? A clock!",
    "Why was the broom late? It swept in!",
    "What kind of room has no doors? A mushroom!",
    "Why did the bicycle fall over? It was two-tired!",
    "What do you call a sleeping bull? A bulldozer!",
)
RIDDLES = (
    ("What has a face and two hands but no legs?", "a clock"),
    ("What gets wetter the more it dries?", "a towel"),
    ("What has teeth but cannot bite?", "a comb"),
    ("What goes up but never comes down?", "your age"),
    ("What has many leaves but is not a tree?", "a book"),
    ("What has one eye but cannot see?", "a needle"),
    ("What can you catch but not throw?", "a cold"),
)
