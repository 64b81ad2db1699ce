// What the theme leaves out for those who use a keyboard or hear the page.

for (const caption of document.querySelectorAll('.caption[role="heading"]')) caption.setAttribute("aria-level", "2");
for (const each of document.querySelectorAll("pre, .table-wrapper")) {
  if (each.scrollWidth > each.clientWidth) each.tabIndex = 0;
}
