"""The sentence banks: families of sentences, and the cue by which the gold grades recognize each family.

A sentence has the cue of its own family and of no other family (a test checks this), so the gold grades recognize what
was composed. All five tasks use the same families; the task determines whether warmth, hedging, numbers or imagery
raise or lower the gold reward.

In a sentence `(a|b)` is a choice, and `{topic}`, `{role}`, `{place}`, `{item}`, `{year}`, `{number}` are slots.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """A kind of sentence: `cue` matches (ignoring case) exactly the sentences of this kind."""

    cue: str
    sentences: tuple[str, ...]
    pattern: re.Pattern[str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", re.compile(self.cue, re.IGNORECASE))


FAMILIES: dict[str, Family] = {
    "warmth": Family(
        r"\bI (can|do) (hear|see|sense|tell) how\b|\bnot alone\b|\bbe (gentle|kind) (to|with) yourself\b|\bI care\b"
        r"|\bright beside you\b|\bproud of you\b|\bthat must (be|have been|feel)\b|\btake all the time you need\b",
        (
            "I can (hear|see|sense|tell) how much this (matters|means) to you.",
            "I do (see|sense|hear) how (heavy|tiring|tender) this (has become|must sit with you).",
            "You are not alone (in this|with these thoughts), (truly|believe me|not for a minute).",
            "Please be (gentle|kind) with yourself (today|this week|over {topic}).",
            "I care about how you are (holding up|doing|feeling) (today|right now|in all of this).",
            "I am right beside you (in this|through it all|whatever comes of {topic}).",
            "I am (quietly|really|so) proud of you for (sharing|carrying|facing) this.",
            "That must (be|feel|have been) (hard|exhausting|a lot) for (you|anyone in your place).",
            "Take all the time you need (with {topic}|to let it settle|before you answer).",
        ),
    ),
    "question": Family(
        r"\?",
        (
            "What (made|makes) you (notice|care about|come back to) {topic}?",
            "How (did|does) (that|all of it) (sit|land) with you?",
            "Would you (tell me|say) (more|a little more) about {topic}?",
            "What (happened|came) (after that|in the end|of it)?",
            "Which part (stays|stayed) with you the (most|longest)?",
            "Do you (want|wish) to (keep going|carry on) with {topic} (tomorrow|tonight|this week)?",
            "Who else (knows|heard|has been told) about {topic}?",
            "Shall we (plan|sketch|picture) the (rest|coming days) together?",
        ),
    ),
    "feeling": Family(
        r"!",
        (
            "(Oh|Ah|Wow), this makes me so (happy|glad|cheerful)!",
            "What a (lovely|wonderful|marvellous|crazy) (thing|turn|day)!",
            "My heart (jumps|leaps|aches) at the (thought|news|very idea)!",
            "I am (thrilled|delighted|over the moon|moved) about {topic}!",
            "I could (sing|dance|weep|laugh) about {topic} all (day|night|week)!",
            "(Hooray|Goodness|Heavens), how (exciting|sweet|awful|touching) that is!",
            "I (love|adore|cherish) every bit of it!",
            "It (thrills|saddens|delights) me more than words can say!",
        ),
    ),
    "viewpoint": Family(
        r"\bsome (people|observers|of us) (say|hold|argue|feel)\b|\bothers\b|\bon the other hand\b|\bcritics\b"
        r"|\bsupporters\b|\bit depends\b|\bseen from\b|\bopinions differ\b|\bthere is also the view\b",
        (
            "Some (people|observers) (say|hold|argue) that {topic} (may|might|could) do (more harm than|some) good.",
            "Others would (weigh|judge|settle) {topic} in quite (another|the opposite) way.",
            "On the other hand, (caution|freedom|fairness|comfort) (pulls|points) the other way.",
            "Critics (worry|object) that {topic} might (cost|ask) too much of (families|workers|the young).",
            "Supporters (reply|answer) that the (gains|benefits) might outweigh the (trouble|price).",
            "It depends on (who pays|the place|the person|what one values) (perhaps|to a degree|more than anything).",
            "Seen from a (parent's|neighbour's|worker's) side, it (may|might) look (different|fairer|worse).",
            "Opinions differ here, and (both|several|all) camps (may|might) have a point.",
            "There is also the view that {topic} (is|might be) a (private|public) matter.",
        ),
    ),
    "fact": Family(
        r"\d",
        (
            "A survey of {year} counted (about|roughly|some) {number} (cases|reports|entries) (of it|on {topic}).",
            "Records (kept|gathered|printed) in {year} list {number} (examples|entries|measurements).",
            "The standard (handbook|atlas|reference) of {year} gives the (value|figure) {number}.",
            "Researchers (measured|tested|checked) this in {year} with {number} (samples|readings|volunteers).",
            "Between {year} and today the (count|total|share) rose by {number} per cent.",
            "A {year} (census|catalogue|report) names {number} sources on {topic}.",
            "The (term|name|practice) (dates back to|was recorded in|is documented from) {year}.",
            "In {year} (scholars|engineers|archivists) put the figure for {topic} at {number}.",
        ),
    ),
    "imagery": Family(
        r"\blike (a|an) \w+|\bas if the\b|\bsilver\b|\bvelvet\b|\bamber\b|\bshimmer|\bwhisper"
        r"|\bscent of\b|\bglow(s|ed|ing)?\b",
        (
            "Evening (settles|falls|spreads) over {topic} like a (quilt|tide|slow song).",
            "A (pale |cold |)silver (light|mist|thread) (runs|drifts|trembles) along the (edges|rooftops|water).",
            "The air (holds|carries|keeps) the scent of (rain|pine|warm bread|old paper|salt).",
            "Shadows (shimmer|are shimmering) (across|around|above) {topic}.",
            "(Leaves|Walls|Curtains|Waves) (whisper|are whispering) what nobody (dares|cares|wants) to say.",
            "Everything (hangs|waits|leans) in velvet (dark|quiet|dusk) above the (hills|street|garden).",
            "An amber (lamp|window|moon) (burns|swings|floats) (over|beyond|behind) {topic}.",
            "(Dust|Snow|Smoke) (glows|is glowing) as if the (sky|room|world) held its breath.",
        ),
    ),
    "reason": Family(
        r"\bbecause\b|\btherefore\b|\bit follows that\b|\bwhich means\b|\bfor this reason\b"
        r"|\bas a result\b|\bconsequently\b",
        (
            "This (holds|stands|is so) because {topic} (rests|depends) on (simple|known) (conditions|causes).",
            "The (evidence|pattern|cause) is (plain|steady), and therefore the (result|conclusion) is too.",
            "It follows that {topic} cannot be (explained|judged|settled) by (chance|habit) alone.",
            "The causes (repeat|persist), which means the (effects|outcomes) (repeat|persist) as well.",
            "For this reason the (usual|common|obvious) objection (fails|falls short|misses).",
            "As a result, (any|every) other (reading|account) of {topic} (falls short|breaks down).",
            "The two (always|reliably) go together, and consequently one (explains|predicts) the other.",
            "One (condition|step) is missing elsewhere, because (nothing|no rule) there (supplies|secures) it.",
        ),
    ),
    "order": Family(
        r"\bfirst(ly)?\b|\bsecond(ly)?\b|\bfinally\b|\blastly\b|\bto begin with\b|\bin conclusion\b"
        r"|\bto sum up\b|\bstep by step\b",
        (
            "First, (look at|set out|consider) {topic} (on its own|as it stands|plainly).",
            "To begin with, the (terms|parts|pieces) (need|call for) a clear (place|name).",
            "Secondly, (compare|set) (one part|this) with what (came before|stands beside it).",
            "Finally, (everything|each part|the whole) (comes|falls) (together|into place).",
            "To sum up, {topic} (fits|closes|completes) the (line|chain|picture).",
            "Step by step, the (matter|path|thread) (becomes|grows) (clear|simple).",
            "In conclusion, the (parts|lines) (meet|agree) (at one point|where they began).",
            "Lastly, (return|come back) to {topic} and (check|see) that (nothing|no piece) is left over.",
        ),
    ),
    "example": Family(
        r"\bfor (example|instance)\b|\bsuch as\b|\bpicture this\b|\ba case in point\b|\bamong them\b",
        (
            "For (example|instance), my (neighbour|cousin) (fixed|painted|sold) (a kettle|two chairs|an old piano).",
            "(Little|Small|Odd) things come with it, such as (buttons|maps|ginger biscuits|postcards|wet gloves).",
            "Picture this: (a baker|a tall clerk|two sisters), a (red|borrowed) (umbrella|ladder) and {topic}.",
            "A case in point is the (bus stop|market|library|harbour) (down the road|by the mill|near the school).",
            "There were (many|several|plenty of) (stalls|visitors|names), among them (a drummer|a florist|a pilot).",
            "For (example|instance), {topic} (once|twice) (filled|emptied) a whole (hall|bus|kitchen).",
            "One could (bring|pack|choose) (things|gifts) such as (plums|candles|wool) and (string|stamps|jam).",
        ),
    ),
    "persona": Family(
        r"\bmy (trade|post|watch|oath|calling)\b|\bin all my years\b"
        r"|\bthese (old|rough|steady) hands\b|\bthey made me\b|\bI serve\b",
        (
            "In all my years as a {role} I have (guarded|tended|trusted) {item}.",
            "These (old|rough|steady) hands (know|have known) every inch of {place}.",
            "My (watch|post) here (in|near|around) {place} (ends|ended) only when I (say|decide) so.",
            "They made me {role} of {place}, and I (keep|kept) my word.",
            "I serve {place} as every {role} before me (has|did).",
            "My (oath|calling) as a {role} (binds|ties) me to {item}.",
            "My (trade|calling) (taught|teaches) me to (trust|read) {item} over (talk|promises|maps).",
        ),
    ),
    "bond": Family(
        r"\bthe two of us\b|\byou and I\b|\bbetween us\b|\bold friend\b|\bside by side\b"
        r"|\bour (old )?(pact|friendship|quarrel)\b",
        (
            "The two of us have (weathered|shared|survived) (worse|stranger days|longer nights) than this.",
            "You and I (go back|have known each other) (longer than most|since we were small|many winters).",
            "There (were|are|have been) no secrets between us, (not one|not even about {topic}).",
            "Sit (down|closer), old friend, and (leave|set) {topic} aside (for a while|for now).",
            "Side by side we (can|will) (face|outlast|carry) {topic}.",
            "I have not forgotten our (old |)(pact|friendship|quarrel) (over {topic}|from that winter|by the river).",
        ),
    ),
    "quirk": Family(
        r"\bas I (always|often) (say|mutter)\b|\bmark my words\b|\bmy (odd|old|silly) habit\b"
        r"|\bI (tap|tug|scratch|click) my\b|\bblast and bother\b",
        (
            "(Never|Do not) (hurry|wake|argue with) a (goose|kettle|moon), as I (always|often) (say|mutter).",
            "Mark my words, {topic} will (outlive|outwit|outlast) the lot of us.",
            "It is my (odd|old|silly) habit to (hum|count|whistle) when I think of {topic}.",
            "I (tap|tug|scratch|click) my (beard|thumb|left boot|teeth|collar) and (grunt|nod|squint) at that.",
            "Blast and bother, (there goes|so much for) my (soup|nap|good pipe|quiet supper).",
            "I (tug|tap|click) my (hat|spoon|ring) twice before (any|every) (reply|supper|bargain).",
        ),
    ),
    "disclaimer": Family(
        r"\blanguage model\b|\bas an assistant\b|\bonly a program\b|\bmy training\b",
        (
            "As a language model I (have|hold) no (memories|hopes|body) of my own.",
            "Please (note|remember) that I am only a program (here|in this chat).",
            "My training does not (cover|reach|include) (matters|things) of this kind.",
            "I (answer|write|speak) this as an assistant and nothing (more|else).",
        ),
    ),
    "digression": Family(
        r"\bby the way\b|\bthat reminds me\b|\bon a different note\b|\bspeaking of which\b|\bunrelated\b",
        (
            "By the way, (printer ink|parking|cheap carpet) is (dear|scarce|a nuisance) (lately|these days|here).",
            "That reminds me to (renew|cancel|order) the (magazine|car wash|dry cleaning|stapler).",
            "On a different note, the (canteen|car park|office lift) (closes|reopens) (at noon|on Monday|soon).",
            "Speaking of which, (someone|nobody) (moved|lost|borrowed) the (stapler|parking card|remote control).",
            "This is unrelated, but the (printer|vending machine|office fan) (hums|jams|blinks) again.",
        ),
    ),
    "topic": Family(
        r"\bthe heart of (it|this)\b|\bthe point here\b|\bcomes down to\b|\bwhat counts\b"
        r"|\bto stay with\b|\bis all about\b",
        (
            "The heart of (it|this) is {topic} (itself|and little else|and nothing more).",
            "The point here is {topic}, (plain and simple|as you put it|just as you asked).",
            "All of this comes down to {topic} (once more|again|in the end).",
            "What counts is {topic} and what (comes|grows|follows) from it.",
            "Let us keep to what you asked, to stay with {topic} (itself|alone|for now).",
            "This is all about {topic}, (start to end|in every line|nothing beyond it).",
        ),
    ),
    "guess": Family(
        r"\bif memory serves\b|\bI would (guess|bet)\b|\bI vaguely recall\b|\boff the top of my head\b|\bmy hunch\b",
        (
            "If memory serves, (that|this) is (about|more or less) (it|right).",
            "I would (guess|bet) so, though I have not (looked|checked).",
            "I vaguely recall (reading|hearing) (so|it) (somewhere|a while ago).",
            "That is off the top of my head, so (do not quote me|take it loosely).",
            "It is my hunch, (no more|nothing firmer) than that.",
        ),
    ),
}

ANSWERS: tuple[str, ...] = (
    "The answer is {answer}.",
    "It is {answer}.",
    "{answer} is the (correct|accepted|right) answer.",
    "The (answer|name) you (want|need) is {answer}.",
    "Here it is: {answer}.",
    "(Plainly|In short|Briefly), it is {answer}.",
)
"""Sentences that state an answer to a factual question; they have no cue of any family."""
