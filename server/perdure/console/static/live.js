// Keeps an open page true: when its stream says that something has changed, <main> is asked for again and morphed in.
// One request at a time; what changes while one is under way is asked for afterwards, so nothing is missed.

let asking = false;
let again = false;

document.body.addEventListener("changed", async () => {
  again = true;
  if (asking) return;
  asking = true;
  try {
    while (again) {
      again = false;
      const page = document.getElementById("page");
      await htmx.ajax("GET", page.dataset.address, {
        source: page, target: page, swap: "outerMorph", headers: { "X-Refresh": "true" },
      });
    }
  } finally {
    asking = false; // a failed request: the stream breaks as well, and says so when it is back
  }
});
