// The keys of the rater's page. What a key means is a table; what is typed into a field or a dialog is left alone.

/** commands: {select(label), place(tier), move(step), turn(step), look(dx, dy), tie(), zoom(), submit(), undo(), skip(), help()}. */
export function enableKeys(commands, { isOn, isTaskShown }) {
  const arrows = {
    ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0],
  };
  const named = {
    "=": commands.tie, " ": commands.zoom, Enter: commands.submit, z: commands.undo, s: commands.skip, "?": commands.help,
    Backspace: () => {}, // some browsers would leave the page
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (document.querySelector("dialog[open]")) return;
    const act = actionOf(event);
    if (!act || !isOn()) return;
    if (!isTaskShown() && act !== commands.help && act !== commands.undo) return;
    // a button that the Tab key went to is pressed by these two
    if ((event.key === "Enter" || event.key === " ") && event.target.closest("button, a, summary, label")) return;
    event.preventDefault();
    if (!event.repeat) act();
  });

  function actionOf(event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (/^[a-f]$/.test(key)) return () => commands.select(key.toUpperCase());
    if (key === "0" || /^[1-6]$/.test(key)) return () => commands.place(Number(key));
    if (key in arrows) {
      const [dx, dy] = arrows[key];
      if (event.shiftKey) return () => commands.look(dx, dy);
      return () => (dy ? commands.move(dy) : commands.turn(dx));
    }
    return Object.hasOwn(named, key) ? named[key] : null;
  }
}

function isTyping(target) {
  return target.isContentEditable || Boolean(target.closest?.("input, textarea, select"));
}
