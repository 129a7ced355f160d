// The map of the systems: pointing at a system or an arrow shows what was taken from whom.
for (const map of document.querySelectorAll(".mmlab-map")) {
  const note = map.querySelector(".mmlab-map-note");
  const parts = [...map.querySelectorAll(".mmlab-node, .mmlab-edge")];

  const rest = () => {
    map.classList.remove("mmlab-active");
    for (const part of parts) part.classList.remove("mmlab-took", "mmlab-gave", "mmlab-self");
    note.textContent = note.dataset.hint;
  };

  const showSystem = (name) => {
    const near = new Map();
    for (const edge of map.querySelectorAll(".mmlab-edge")) {
      const { from, to } = edge.dataset;
      if (to === name) { edge.classList.add("mmlab-took"); near.set(from, "mmlab-took"); }
      if (from === name) { edge.classList.add("mmlab-gave"); near.set(to, "mmlab-gave"); }
    }
    for (const node of map.querySelectorAll(".mmlab-node")) {
      const kind = node.dataset.name === name ? "mmlab-self" : near.get(node.dataset.name);
      if (kind) node.classList.add(kind);
    }
  };

  const show = (part) => {
    rest();
    map.classList.add("mmlab-active");
    note.textContent = part.dataset.note;
    if (part.dataset.name) return showSystem(part.dataset.name);
    part.classList.add("mmlab-took");
    for (const node of map.querySelectorAll(".mmlab-node"))
      if ([part.dataset.from, part.dataset.to].includes(node.dataset.name))
        node.classList.add("mmlab-self");
  };

  for (const part of parts) {
    part.addEventListener("pointerenter", () => show(part));
    part.addEventListener("pointerleave", rest);
    part.addEventListener("focus", () => show(part));
    part.addEventListener("blur", rest);
  }
}
