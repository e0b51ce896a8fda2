// Sorts tables by a click on a head, moves galleries with their sliders, and draws the charts.
for (const head of document.querySelectorAll('th')) head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], column = head.cellIndex;
  const down = head.dataset.down = head.dataset.down ? '' : '1';
  const value = row => { const text = row.cells[column].dataset.value; return column && text !== '' ? +text : text };
  const order = (a, b) => a === '' || b === '' ? (a === '') - (b === '') : (down ? 1 : -1) * (a < b ? -1 : a > b ? 1 : 0);
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
for (const place of document.querySelectorAll('[data-chart]'))
  vegaEmbed(place, JSON.parse(place.dataset.chart), {actions: false, renderer: 'svg'});
