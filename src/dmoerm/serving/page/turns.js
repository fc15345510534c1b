/** Splits a text into turns: ChatML, and “Human: … Assistant: …” as in hh-rlhf. */

const CHATML = /<\|im_start\|>\s*(system|user|assistant)\s*\n([\s\S]*?)(?:<\|im_end\|>|(?=<\|im_start\|>)|$)/g;
const SPOKEN = /^[ \t]*(System|Human|User|Assistant|AI)[ \t]*:[ \t]*/gim;
const ROLES = { human: "user", ai: "assistant" };

/** [{role, content}], or null if the text is not a conversation of at least two turns. */
export function turnsOf(text) {
  let turns = [...text.matchAll(CHATML)].map(([, role, content]) => ({ role, content: content.trim() }));
  if (!turns.length) {
    const marks = [...text.matchAll(SPOKEN)];
    if (!marks.length || text.slice(0, marks[0].index).trim()) return null; // text before the first name: another format
    turns = marks.map((mark, index) => {
      const name = mark[1].toLowerCase();
      const content = text.slice(mark.index + mark[0].length, marks[index + 1]?.index).trim();
      return { role: ROLES[name] ?? name, content };
    });
  }
  turns = turns.filter(({ content }) => content);
  return turns.length > 1 && turns.some(({ role }) => role === "user") ? turns : null;
}
