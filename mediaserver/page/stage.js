// Where the tiles go: as large as they can be, never cut to an odd shape; a shared screen takes the most room.

const GAP = 12;
const STRIP = 0.24; // part of the stage beside a shared screen
const ORDER = { screen: 0, tile: 1, "own-tile": 2 };

/** Put the tiles of a stage into place, now and whenever its size or its tiles change. */
export function arrange(stage) {
  const place = () => layOut(stage);
  new ResizeObserver(place).observe(stage);
  new MutationObserver(place).observe(stage, { childList: true });
}

function layOut(stage) {
  const { clientWidth: width, clientHeight: height } = stage;
  const rank = (tile) => (tile.dataset.source === "screen" ? ORDER.screen : ORDER[tile.dataset.testid]);
  const tiles = [...stage.children].sort((one, other) => rank(one) - rank(other));
  const screens = tiles.filter((tile) => tile.dataset.source === "screen");
  const faces = tiles.filter((tile) => tile.dataset.source !== "screen");
  const whole = { x: 0, y: 0, width, height };
  const upright = height > width;
  if (screens.length === 0 || faces.length === 0) return grid(tiles, whole, upright && screens.length === 0);
  const strip = Math.max(upright ? 120 : 180, (upright ? height : width) * STRIP);
  // Held upright, screens are as wide as the stage at most; the faces get what these leave.
  const wanted = upright ? screens.length * ((width * 9) / 16 + GAP) - GAP : width;
  const rest = Math.min((upright ? height : width) - strip - GAP, wanted);
  grid(screens, upright ? { ...whole, height: rest } : { ...whole, width: rest });
  grid(faces, upright ? { ...whole, y: rest + GAP, height: height - rest - GAP } : { ...whole, x: rest + GAP, width: strip });
}

/** Fill an area with equal tiles, with as many columns as make them largest: 16:9, or up to square. */
function grid(tiles, area, square = false) {
  if (tiles.length === 0) return;
  let best = null;
  for (let columns = 1; columns <= tiles.length; columns += 1) {
    const rows = Math.ceil(tiles.length / columns);
    const cell = { width: (area.width - GAP * (columns - 1)) / columns, height: (area.height - GAP * (rows - 1)) / rows };
    const width = Math.min(cell.width, (cell.height * 16) / 9);
    const height = square ? Math.min(cell.height, width) : (width * 9) / 16; // phones are held upright
    if (!best || width * height > best.width * best.height) best = { columns, rows, width, height };
  }
  const top = area.y + (area.height - best.rows * best.height - GAP * (best.rows - 1)) / 2;
  tiles.forEach((tile, at) => {
    const row = Math.floor(at / best.columns);
    const inRow = Math.min(best.columns, tiles.length - row * best.columns);
    const left = area.x + (area.width - inRow * best.width - GAP * (inRow - 1)) / 2;
    tile.style.width = `${best.width}px`;
    tile.style.height = `${best.height}px`;
    tile.style.left = `${left + (at % best.columns) * (best.width + GAP)}px`;
    tile.style.top = `${top + row * (best.height + GAP)}px`;
  });
}
