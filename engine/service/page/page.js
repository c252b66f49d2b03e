// What the parts of the page share.

import { readAddress } from "./state.js";

export const page = {
  collection: null, // what the server says of it
  described: Promise.withResolvers(), // settled when it has: what is asked before waits for it
  state: readAddress(location.hash), // what is asked
  caption: "", // the attribute that is shown on pictures
  answer: null, // {hits, code, coverage, ...} of the latest search; null where there is none
  counts: null, // items at each distance from the code
  countsOf: null, // which code and filter they are of
  duplicates: null, // groups of near-duplicates, while they are shown
  running: null, // the search under way
  queued: false, // whether the handle has moved on meanwhile
  codes: new Map(), // kind and value of a chip -> its code
  uploads: new Map(), // code -> the picture that was sent
};
