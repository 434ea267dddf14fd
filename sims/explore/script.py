"""What the browser does: from the numbers of the point to the drawings and the table. The same for both kinds of page.

A live page takes the numbers from the server (`numbers`), an exported one looks them up (`tables`). Widgets, sources,
figures and what is written in the table come from `page`.
"""

DRAW = r"""
const NONE = 65535
const index = (name) => name in sliders ? sliders[name].categories.indexOf(sliders[name].value) : 0
const value = (name) => dials[name][index(name)]
const axis = (name) => {  // indices of a dial's values along the phase diagram
  const stride = dials[name].length > most ? 2 : 1
  return Array.from({length: Math.ceil(dials[name].length / stride)}, (_, i) => i * stride)
}
const [x, y] = [selects.x.value, selects.y.value]
const [xs, ys] = [axis(x), axis(y)]
const key = asked.map((widget) => widget.value).join(" ")

function look_up(learner, moved) {
  const table = tables[learner]
  let k = 0
  for (const name of table.dials) k = k * dials[name].length + (name in moved ? moved[name] : index(name))
  const found = []
  for (let i = k * table.width; i < (k + 1) * table.width; i++) {
    const code = table.codes[i]
    found.push(code === NONE ? NaN : code / 10000 - (i % table.width === 2 ? table.turn : 0))
  }
  return found
}

function all_learners(points) {
  return points.flatMap((moved) => Object.keys(learners).flatMap((learner) => look_up(learner, moved)))
}

function looked_up() {
  const plane = ys.flatMap((i) => xs.map((j) => ({[y]: i, [x]: j})))
  const found = {
    point: all_learners([{}]),
    curve: all_learners(dials.p_spu.map((_, i) => ({p_spu: i}))),
    plane: all_learners(plane),
    time: dials.time.flatMap((_, i) => look_up("training", {time: i})),
  }
  if (x === y) found.plane.fill(NaN)
  return found
}

let found = null
if (tables !== null) found = looked_up()
else if (numbers.data.key[0] === key)
  found = Object.fromEntries(["point", "curve", "plane", "time"].map((name) => [name, numbers.data[name][0]]))
if (found === null) {  // no number is shown that belongs to other values
  table.text = "<p id=state>Computing … Until then the figures are those of the last values.</p>"
  return
}

const order = Object.keys(learners)
const chosen = order.indexOf(selects.learner.value)
const look = learners[order[chosen]]
const sl = order.indexOf("supervised")
const four = (number) => isNaN(number) ? "-" : number.toFixed(4)
const ordinary = value("same_class_weight") === 0.5
const time = ordinary ? found.time : Array.from(found.time, () => NaN)
const at = (array, point, learner) => {  // [aligned, conflicting, P*] of a learner at the point with this number
  const k = (point * order.length + learner) * 3
  return [array[k], array[k + 1], (array[k] + array[k + 1]) / 2]
}
const along_time = (i) => [time[2 * i], time[2 * i + 1], (time[2 * i] + time[2 * i + 1]) / 2]
const columns = (rows) => [0, 1, 2].map((k) => rows.map((row) => row[k]))

// Accuracy against p_spu.
const curve = {p: dials.p_spu}
const now = {p: [value("p_spu"), value("p_spu")], colour: [look.colour, learners.supervised.colour]}
for (const [who, learner] of [["chosen", chosen], ["sl", sl]]) {
  const parts = columns(dials.p_spu.map((_, i) => at(found.curve, i, learner)))
  for (const [k, part] of ["aligned", "conflicting", "shifted"].entries()) curve[`${who}_${part}`] = parts[k]
}
for (const [k, part] of ["aligned", "conflicting", "shifted"].entries())
  now[part] = [at(found.point, 0, chosen)[k], at(found.point, 0, sl)[k]]
sources.curve.data = curve
sources.now.data = now
for (const line of coloured) line.glyph.line_color = {value: look.colour}

// The latent plane.
const [mu, sd] = [[value("mu_core"), value("mu_spu")], [value("sigma_core"), value("sigma_spu")]]
const reach = Math.max(mu[0] + 2 * sd[0], mu[1] + 2 * sd[1], 1)
const wide = figures.latent.inner_width > 0 ? figures.latent.inner_width / figures.latent.inner_height : 1
figures.latent.x_range.setv({start: -1.08 * reach * wide, end: 1.08 * reach * wide})
figures.latent.y_range.setv({start: -1.08 * reach, end: 1.08 * reach})
const clouds = {x: [], y: [], width: [], height: [], colour: [], alpha: []}
const names = {x: [], y: [], text: [], align: []}
for (const label of [1, -1]) for (const side of [1, -1]) {
  const share = (side > 0 ? value("p_spu") : 1 - value("p_spu")) / 2
  for (const size of [1, 2]) {
    clouds.x.push(label * mu[0]); clouds.y.push(label * side * mu[1])
    clouds.width.push(2 * size * sd[0]); clouds.height.push(2 * size * sd[1])
    clouds.colour.push(groups[side > 0 ? "aligned" : "conflicting"]); clouds.alpha.push(0.06 + 0.5 * share)
  }
  names.x.push(label * mu[0]); names.y.push(label * side * mu[1]); names.align.push(label > 0 ? "left" : "right")
  names.text.push(`class ${label > 0 ? "+1" : "-1"}, ${(100 * share).toFixed(1)}%`)
}
sources.clouds.data = clouds
sources.names.data = names
const rules = {x0: [], y0: [], x1: [], y1: [], colour: [], width: [], dash: [], turn: []}
for (const [i, learner] of order.entries()) {
  const angle = found.point[3 * i + 2]
  rules.x0.push(0); rules.y0.push(0)
  rules.x1.push(reach * Math.cos(angle)); rules.y1.push(reach * Math.sin(angle))
  rules.colour.push(learners[learner].colour); rules.dash.push(learners[learner].dash)
  rules.width.push(i === chosen ? 5 : 2.5); rules.turn.push(angle - Math.PI / 2)
}
sources.rules.data = rules

// The phase diagram.
const kind = values[selects.value.value]
const cell = (i) => {
  const [aligned, conflicting, shifted] = at(found.plane, i, chosen)
  return {shifted, conflicting, gap: aligned - conflicting, beside: shifted - at(found.plane, i, sl)[2]}
}
const plane = {x: [], y: [], value: []}
for (const [i] of ys.entries()) for (const [j] of xs.entries()) {
  plane.x.push(j); plane.y.push(i)
  plane.value.push(cell(i * xs.length + j)[selects.value.value])
}
mapper.setv({palette: kind.palette, low: kind.low, high: kind.high})
sources.plane.data = plane
const place = (name, indices) => index(name) * (indices.length - 1) / Math.max(indices[indices.length - 1], 1)
sources.here.data = {x: [place(x, xs)], y: [place(y, ys)]}
figures.plane.x_range.setv({start: -0.5, end: xs.length - 0.5})
figures.plane.y_range.setv({start: -0.5, end: ys.length - 0.5})
for (const [side, name, indices] of [[axes.x, x, xs], [axes.y, y, ys]]) {
  side.axis_label = titles[name]
  side.formatter.args = {shown: indices.map((i) => ticks[name][i])}
}

// Training time.
const times = dials.time.map((_, i) => along_time(i))
const [grown, opposed, both] = columns(times)
sources.time.data = {time: dials.time, aligned: grown, conflicting: opposed, shifted: both}
const [now_aligned, now_conflicting, now_shifted] = along_time(index("time"))
sources.moment.data = {
  time: [value("time")], aligned: [now_aligned], conflicting: [now_conflicting], shifted: [now_shifted],
}

// The table.
const lines = order.map((learner, i) => [learner, learners[learner], at(found.point, 0, i)])
lines.push(["training", training, along_time(index("time"))])
const cells = lines.map(([name, look, [aligned, conflicting, shifted]]) => {
  const p = value("p_spu")
  const mark = `<span style="display:inline-block;width:1.6em;border-top:4px ${look.border} ${look.colour}"></span>`
  const four_of = {aligned, conflicting, shifted, train: p * aligned + (1 - p) * conflicting}
  const numbers = Object.entries(four_of).map(([part, x]) => `<td role=cell data-part=${part}>${four(x)}</td>`)
  const name_cell = `<th role=rowheader>${mark} ${look.label} <span class=scope>${look.scope}</span></th>`
  return `<tr role=row data-learner=${name}>${name_cell}${numbers.join("")}</tr>`
})
const gone = (learner) => isNaN(lines.find(([name]) => name === learner)[2][2])
const notes = []
if (gone("mmcl")) notes.push(reasons.mmcl)
if (gone("supervised")) notes.push(value("sigma_image") === 0 ? reasons.noiseless : reasons.supervised)
if (gone("training") && !ordinary) notes.push(reasons.training)
if (x === y) notes.push(reasons.plane)
const where = Object.keys(dials).map((name) => `${name} = ${ticks[name][index(name)]}`).join(", ")
const heads = ["learner", "aligned", "conflicting", "P*", "P"].map((head) => `<th role=columnheader>${head}</th>`)
table.text = `<table role=table><tr role=row>${heads.join("")}</tr>${cells.join("")}</table>`
  + notes.map((note) => `<p class=note>${note}</p>`).join("")
  + `<p id=state>At ${where}, masking = ${selects.masking.value}.</p>`
"""

# A slider's handle is what the keyboard moves; its name stands beside it, not in it.
NAME_HANDLES = r"""
for (const slider of Object.values(sliders)) {
  const view = Bokeh.index.find_one_by_id(slider.id)
  view.shadow_el.querySelector(".noUi-handle").setAttribute("aria-label", slider.title)
}
"""
