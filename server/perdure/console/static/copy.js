// <copy-text><label>…<input readonly></label></copy-text>: a button that copies what stands in the input.

class CopyText extends HTMLElement {
  connectedCallback() {
    if (this.querySelector("button")) return;
    const input = this.querySelector("input");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      button.textContent = (await copied(input)) ? "Copied" : "Press Ctrl+C";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    input.addEventListener("focus", () => input.select());
    this.append(button);
  }
}

/** Whether it worked. Without HTTPS browsers offer the older way only. */
async function copied(input) {
  try {
    await navigator.clipboard.writeText(input.value);
    return true;
  } catch {
    input.select();
    return document.execCommand("copy");
  }
}

customElements.define("copy-text", CopyText);
