// Light or dark, before anything is drawn: what the person has chosen, or else what the system says.
const chosen = localStorage.getItem("perdure-theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
