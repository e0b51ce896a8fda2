// Sorts tables by a click on a head, and moves galleries with their sliders.
for (const head of document.querySelectorAll('th')) head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], column = head.cellIndex;
  const down = head.dataset.down = head.dataset.down ? '' : '1';
  const value = row => { const text = row.cells[column].textContent; return column ? parseFloat(text) : text };
  const missing = number => number !== number;
  const order = (a, b) => missing(a) || missing(b) ? missing(a) - missing(b) : (down ? 1 : -1) * (a < b ? -1 : a > b ? 1 : 0);
  const rows = [...body.rows].sort((a, b) => order(value(a), value(b)));
  body.append(...rows);
});
for (const gallery of document.querySelectorAll('.gallery')) {
  const slider = gallery.querySelector('input'), pictures = JSON.parse(gallery.dataset.pictures);
  const show = () => {
    gallery.querySelector('img').src = pictures[slider.value].image;
    gallery.querySelector('output').textContent = pictures[slider.value].row;
  };
  slider.addEventListener('input', show); show();
}
