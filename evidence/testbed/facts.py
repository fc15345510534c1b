"""The fact base of the task objective_qa: questions with a right answer and two plausible wrong ones."""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """A factual question. `topic` is a part of `question`; `wrong` has two wrong answers."""

    question: str
    topic: str
    answer: str
    wrong: tuple[str, str]


FACTS: tuple[Fact, ...] = (
    Fact("Which city is the capital of Australia?", "the capital of Australia", "Canberra", ("Sydney", "Melbourne")),
    Fact("Which city is the capital of Canada?", "the capital of Canada", "Ottawa", ("Toronto", "Montreal")),
    Fact("Which city is the capital of Turkey?", "the capital of Turkey", "Ankara", ("Istanbul", "Izmir")),
    Fact("Which city is the capital of Brazil?", "the capital of Brazil", "Brasilia", ("Rio de Janeiro", "Salvador")),
    Fact("Which metal is liquid at room temperature?", "room temperature", "mercury", ("lead", "tin")),
    Fact(
        "Which gas do green plants take in for photosynthesis?",
        "photosynthesis",
        "carbon dioxide",
        ("oxygen", "helium"),
    ),
    Fact("Which gas makes up most of the air?", "the air", "nitrogen", ("oxygen", "argon")),
    Fact("What is the largest planet of the solar system?", "the solar system", "Jupiter", ("Saturn", "Neptune")),
    Fact("Which planet is closest to the sun?", "the sun", "Mercury", ("Venus", "Mars")),
    Fact("Which organ produces insulin?", "insulin", "the pancreas", ("the liver", "the spleen")),
    Fact("Which organ cleans urea out of the blood?", "urea", "the kidney", ("the stomach", "the lung")),
    Fact("What is the hardest natural mineral?", "natural mineral", "diamond", ("quartz", "topaz")),
    Fact("Which element has the symbol Fe?", "the symbol Fe", "iron", ("fluorine", "tin")),
    Fact("Which element has the symbol Na?", "the symbol Na", "sodium", ("nickel", "potassium")),
    Fact("Who wrote the play Hamlet?", "the play Hamlet", "Shakespeare", ("Marlowe", "Milton")),
    Fact("Who wrote the novel Emma?", "the novel Emma", "Jane Austen", ("Emily Bronte", "George Eliot")),
    Fact("Who painted the Mona Lisa?", "the Mona Lisa", "Leonardo da Vinci", ("Raphael", "Michelangelo")),
    Fact("Who composed the opera The Magic Flute?", "The Magic Flute", "Mozart", ("Verdi", "Haydn")),
    Fact(
        "Which ocean lies between Europe and America?",
        "Europe and America",
        "the Atlantic",
        ("the Pacific", "the Baltic"),
    ),
    Fact("Which river flows through Paris?", "Paris", "the Seine", ("the Rhine", "the Loire")),
    Fact("Which river flows through Vienna?", "Vienna", "the Danube", ("the Rhine", "the Elbe")),
    Fact("Which mountain is the highest above sea level?", "sea level", "Everest", ("Kilimanjaro", "Mont Blanc")),
    Fact("What is the longest bone of the human body?", "the human body", "the femur", ("the tibia", "the humerus")),
    Fact("Which unit measures electrical resistance?", "electrical resistance", "the ohm", ("the volt", "the ampere")),
    Fact("Which unit measures force?", "force", "the newton", ("the joule", "the watt")),
    Fact("What language is mainly spoken in Austria?", "Austria", "German", ("Hungarian", "Italian")),
    Fact(
        "What language is mainly spoken in Brazil's schools?", "Brazil's schools", "Portuguese", ("Spanish", "French")
    ),
    Fact(
        "Which animal is the largest living mammal?", "living mammal", "the blue whale", ("the elephant", "the giraffe")
    ),
    Fact("How many legs does a spider have?", "spider", "eight", ("six", "ten")),
    Fact("How many sides does a hexagon have?", "hexagon", "six", ("five", "eight")),
    Fact("Who first described gravity by a universal law?", "gravity", "Newton", ("Galileo", "Kepler")),
    Fact("Which vitamin does sunlight make in the skin?", "sunlight", "vitamin D", ("vitamin C", "vitamin K")),
    Fact("Which blood cells carry oxygen?", "blood cells", "red cells", ("white cells", "platelets")),
    Fact("What do bees collect to make honey?", "honey", "nectar", ("resin", "dew")),
    Fact("Which instrument measures air pressure?", "air pressure", "the barometer", ("the hygrometer", "the sextant")),
    Fact("What is the freezing form of water called?", "water", "ice", ("steam", "brine")),
)
