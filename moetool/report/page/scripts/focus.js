// Keeps the keyboard where it is while panels draw themselves anew.

/**
 * Remembers which element has the focus.
 * @returns {() => void} Call it afterwards: if that element was replaced, the one in its place gets the focus.
 */
export function holdFocus() {
  const element = document.activeElement;
  /** @type {number[]} */
  const path = [];
  for (let at = element; at?.parentElement; at = at.parentElement) {
    path.unshift(Array.prototype.indexOf.call(at.parentElement.children, at));
  }
  return () => {
    if (element?.isConnected) {
      return;
    }
    /** @type {Element | undefined} */
    let found = document.documentElement;
    for (const index of path) {
      found = found?.children[index];
    }
    if (found instanceof HTMLElement && found.tagName === element?.tagName) {
      found.focus({ preventScroll: true });
    }
  };
}
