// Light or dark: TensorBoard's own choice, which its body's class tells; elsewhere the system's.

const system = window.matchMedia('(prefers-color-scheme: dark)');

/** Set the theme now, and call `changed` with 'light' or 'dark' whenever it becomes another. */
export function followTheme(changed) {
  const set = () => {
    const theme = isDark() ? 'dark' : 'light';
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    changed(theme);
  };
  system.addEventListener('change', set);
  const body = parentBody();
  if (body) new MutationObserver(set).observe(body, {attributes: true, attributeFilter: ['class']});
  set();
}

/** The theme now. */
export function theme() {
  return document.documentElement.dataset.theme;
}

function isDark() {
  const body = parentBody();
  return body ? body.classList.contains('dark-mode') : system.matches;
}

/** TensorBoard's body; null where this page is open by itself, or within a stranger's. */
function parentBody() {
  try {
    return window.parent === window ? null : window.parent.document.body;
  } catch {
    return null;
  }
}
