// What this browser keeps. Some keep nothing, and refuse even to be asked.

export function stored(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

export function store(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // It is only a convenience.
  }
}
