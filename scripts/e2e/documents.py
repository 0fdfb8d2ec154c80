"""A few short documents, and questions that one of them answers: what retrieval is tested with."""

DOCUMENTS = (
    "Bread dough rests for an hour before it is folded four times and baked in a hot iron pot.",
    "The code word for opening the north gate of the harbour is marmalade.",
    "Cirrus clouds are made of ice crystals and float more than six thousand metres above the ground.",
    "A bowline is a knot that makes a loop at the end of a rope and does not slip.",
    "The library on Elm Street opens at nine in the morning and is closed on Mondays.",
    "Octopuses have three hearts, and two of them stop beating while the animal swims.",
    "To change a bicycle tyre, first release the brake and take the wheel out of the frame.",
    "Innsbruck lies in the Alps, 574 metres above the level of the sea.",
    "The spare key of the greenhouse hangs on a nail behind the blue barrel.",
    "Photosynthesis turns carbon dioxide and water into sugar with the light of the sun.",
    "Our cat is called Biscuit and sleeps in the drawer with the winter scarves.",
    "The train to Grenoble leaves at 09:40 from platform seven.",
    "A violin has four strings, tuned to G, D, A and E.",
    "Sourdough bread owes its taste to wild yeast and lactic acid bacteria.",
    "The harbour master collects the fees of all boats on the first day of each month.",
)

# Question, which document answers it, and a word of the answer that the question does not hold.
QUESTIONS = (
    ("What is the code word that opens the north gate?", 1, "marmalade"),
    ("From which platform does the train to Grenoble leave?", 11, "seven"),
    ("What is the name of our cat?", 10, "Biscuit"),
)


def prompt(document, question):
    """What a model is asked once the document is found."""
    return f"Answer with the help of this text.\n\nText: {document}\n\nQuestion: {question}"
