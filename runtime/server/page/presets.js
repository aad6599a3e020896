// What can be asked, by what a model can do.

// By how a model writes boxes and by task: [label, what it does, an example, the prompt before the gap, and behind it].
// A prompt with a gap is completed by the user; one without is asked at once.
const PRESETS = {
  locations: {
    detect: [["Detect …", "Find things, each in a box", "detect cat ; car", "detect ", ""]],
    segment: [["Segment …", "Outline a thing", "segment cat", "segment ", ""]],
    answer: [["How many …", "Count", "how many cats", "how many ", ""]],
    caption: [["Caption", "Say what is in the image", "caption, or caption en", "caption"]],
  },
  patches: {
    ground: [
      ["Caption with boxes", "Say what is in the image, with boxes", "<grounding>An image of", "<grounding>An image of"],
      ["Find …", "Find what a phrase names", "<grounding><phrase>a cat</phrase>", "<grounding><phrase>", "</phrase>"],
    ],
    caption: [["Caption", "Say what is in the image", "An image of", "An image of"]],
    answer: [["Question …", "Answer a question", "Question: how many cats? Answer:", "Question: ", " Answer:"]],
  },
  text: {
    caption: [["Describe it", "Say what is in the image", "Describe the image.", "Describe the image."]],
    answer: [["How many …", "Answer a question", "How many cats are there?", "How many ", " are there?"]],
  },
};

/** What to offer for a model: {label, does, example, before, after, hasGap}. */
export function presets({ boxes, tasks }) {
  const offered = PRESETS[boxes ?? "text"] ?? PRESETS.text;
  const rows = Object.entries(offered).flatMap(([task, prompts]) => (tasks.includes(task) ? prompts : []));
  return rows.map(([label, does, example, before, after]) => ({
    label, does, example, before, after: after ?? "", hasGap: after !== undefined,
  }));
}

/** Whether a model knows earlier turns, as a sentence. */
export function turns({ takes }) {
  return takes.conversation
    ? "Go on asking: earlier questions and answers are remembered."
    : "Each question is answered on its own.";
}
