// A formula that is wider than its column scrolls by itself (mmlab.css). The keyboard has to reach
// it then, and only then: a stop at each formula would be in the way.
function makeReachable() {
  for (const formula of document.querySelectorAll('div.math, mjx-container[display="true"]')) {
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
    else formula.removeAttribute("tabindex");
  }
}

addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  makeReachable();
  addEventListener("resize", makeReachable);
});
