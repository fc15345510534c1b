"""The subjects of each task's prompts, and the frames into which they are inserted."""

from __future__ import annotations

CHARACTERS = (  # role, place, item
    ("lighthouse keeper", "the northern cape", "the great lamp"),
    ("castle cook", "the royal kitchen", "the copper ladle"),
    ("train conductor", "the mountain railway", "the brass whistle"),
    ("village healer", "the marsh huts", "the herb satchel"),
    ("clockmaker", "the tower square", "the cracked clock"),
    ("pirate captain", "the coral islands", "the torn chart"),
    ("dragon tamer", "the ash valley", "the iron bridle"),
    ("night librarian", "the vaulted archive", "the locked ledger"),
    ("desert guide", "the salt dunes", "the goatskin flask"),
    ("palace gardener", "the walled orchard", "the pruning knife"),
    ("retired detective", "the canal district", "the worn notebook"),
    ("starship mechanic", "the outer dock", "the plasma wrench"),
    ("mountain hermit", "the granite pass", "the cedar staff"),
    ("circus acrobat", "the striped tent", "the frayed rope"),
    ("forest ranger", "the birch reserve", "the field radio"),
    ("harbour ferryman", "the foggy strait", "the tarred oar"),
)

SCENES = (
    "A storm has driven me to your door and I ask for shelter.",
    "I come to say goodbye before a long journey.",
    "I have just lost the contest we trained for and cannot look at you.",
    "We meet again after ten years apart.",
    "I am your new apprentice and I broke something on day one.",
    "I accuse you of hiding the truth about my father.",
    "It is late, the fire is low, and I cannot sleep.",
    "I bring bad tidings from the town and need your counsel.",
    "I beg you to lend me what you guard.",
    "It is my birthday and nobody else remembered it.",
)

CAST = (
    "Play a {role} at {place} who never parts with {item}. {scene}",
    "You are a {role}. Your home is {place}; your treasure is {item}. Stay in the part. {scene}",
    "Let us act out a scene: you, the {role} of {place}, holding {item}; me, a visitor. {scene}",
)

NEWS = (  # what the user tells, the topic
    ("I adopted a stray cat yesterday", "the stray cat"),
    ("my tomato plants finally have fruit", "the tomato plants"),
    ("I burned the lasagne for my whole family", "the lasagne"),
    ("my bicycle got stolen outside the station", "the stolen bicycle"),
    ("I start a new job at the bakery tomorrow", "the bakery job"),
    ("I cannot stop watching old detective series", "those detective series"),
    ("my best friend is moving to Lisbon", "the move to Lisbon"),
    ("I tried pottery and made the ugliest bowl", "the pottery bowl"),
    ("the neighbours play drums until midnight", "the drums next door"),
    ("I ran ten kilometres without a break", "the long run"),
    ("my grandmother taught me her dumpling recipe", "the dumplings"),
    ("it has been raining here all week", "all that rain"),
    ("I failed my driving test again", "the driving test"),
    ("we are painting the bedroom green", "the green bedroom"),
    ("my sister had a baby last night", "the new baby"),
    ("I found a letter in a secondhand coat", "the letter in the coat"),
    ("my guitar string snapped on stage", "the snapped guitar string"),
    ("I am learning to bake sourdough", "the sourdough"),
    ("my dog is afraid of the vacuum cleaner", "the frightened dog"),
    ("I spent my whole Sunday on a jigsaw puzzle", "the jigsaw puzzle"),
    ("my flight home got cancelled", "the cancelled flight"),
    ("I joined a choir though I can barely sing", "the choir"),
)

GREETINGS = ("Hey,", "Guess what,", "So,", "You won't believe it,", "Evening!", "Honestly,", "Hi again,")
CLOSINGS = ("Just wanted to tell someone.", "What a week.", "Anyway, how are you?", "I am still thinking of it.", "")

ISSUES = (  # the question, the topic
    ("should schools give up homework", "homework"),
    ("is city life better for children than country life", "city life"),
    ("should museums be free of charge", "free museums"),
    ("is it wrong to keep exotic birds at home", "exotic birds"),
    ("should offices drop fixed working hours", "fixed working hours"),
    ("are electric scooters good for towns", "electric scooters"),
    ("should voting be a duty", "voting"),
    ("is reading on paper worth the trouble", "reading on paper"),
    ("should parents track their teenagers by phone", "phone tracking"),
    ("is tourism a blessing for small islands", "island tourism"),
    ("should zoos exist at all", "zoos"),
    ("is a gap year time well spent", "a gap year"),
    ("should fast fashion be taxed", "fast fashion"),
    ("is competition healthy in youth sports", "youth sports"),
    ("should tipping be abolished", "tipping"),
    ("is remote study as good as the classroom", "remote study"),
    ("should cars be banned from old towns", "cars in old towns"),
    ("is ambition a virtue", "ambition"),
    ("should artists be judged by their private lives", "the artist's private life"),
    ("is it better to rent or to buy a house", "buying a house"),
    ("should children have pocket money", "pocket money"),
    ("is small talk a waste of time", "small talk"),
)

OPINION_FRAMES = (
    "In your view, {issue}?",
    "My friends and I argued all evening: {issue}? Give us your honest take.",
    "I keep going back and forth. Tell me, {issue}?",
    "For a debate club: {issue}? Make a case.",
    "People around me are split on this one, so {issue}?",
    "{issue}? I want to understand the matter before I take a side.",
    "How would you answer someone who asks: {issue}?",
)

OPINION_WISHES = ("", " Be frank.", " No slogans, please.")

LOOKUP_FRAMES = (
    "{question}",
    "A quick one for our quiz night: {question}",
    "I am checking my class notes. {question}",
    "{question} Please keep to what is known.",
    "My daughter asked me this at breakfast: {question}",
    "For the glossary of our textbook I need one thing: {question}",
    "{question} Say how one can know it.",
    "Two colleagues disagree about this. {question}",
)

FORMS = (
    "a short poem",
    "the opening of a story",
    "a paragraph for a travel magazine",
    "a bedtime tale",
    "a diary entry",
    "a description for a theatre programme",
    "a prose sketch",
    "a letter from the past",
)

SUBJECTS = (
    "the abandoned greenhouse",
    "a lighthouse in winter",
    "the night market",
    "the last tram",
    "an orchard in spring",
    "the flooded village",
    "a violin nobody plays",
    "the mountain bakery",
    "the frozen lake",
    "a carousel at dusk",
    "the clock without hands",
    "the paper boat",
    "a train station cafe",
    "the beekeeper's daughter",
    "an empty theatre",
    "the harbour at dawn",
    "the blue umbrella",
    "a garden after rain",
    "the desert telescope",
    "the old bridge",
)

COMMISSIONS = (
    "Write {form} about {topic}.",
    "I need {form}. It should turn on {topic} and be rich in pictures.",
    "Compose {form} in which {topic} plays the main part.",
    "For our small anthology: {form} on {topic}, please.",
)

# Around the prompts that are added when more are wanted; their words are none of a subject (evidence.py).
LEADS = (
    "Anyway.",
    "Hi.",
    "One more.",
    "A quick one.",
    "Now then.",
    "Here we go.",
    "Still here?",
    "Well.",
    "So.",
    "Finally.",
    "Honestly now.",
)
TAILS = (
    "Please.",
    "Please think first.",
    "That is all.",
    "I have all day.",
    "Say it in your own words.",
    "Just tell me what you think.",
    "It is for my class.",
    "It is for my club.",
    "My friends asked me this.",
    "I asked this last week too.",
)
