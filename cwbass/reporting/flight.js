(() => {
  const bar = document.querySelector(".scrub");
  if (!bar) return;
  const slider = bar.querySelector("input"), button = bar.querySelector("button");
  const frames = [...document.querySelectorAll("[data-frame]")];
  const cursors = [...document.querySelectorAll(".cursor")].map((line) => [line, line.dataset.at.split(" ")]);
  const last = Number(slider.max);
  let timer = 0;

  function show(moment) {
    for (const frame of frames) frame.hidden = Number(frame.dataset.frame) !== moment;
    for (const [line, places] of cursors) for (const end of ["x1", "x2"]) line.setAttribute(end, places[moment]);
    slider.value = moment;
    slider.setAttribute("aria-valuetext", bar.querySelector("[data-frame]:not([hidden])").textContent);
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  }

  function play() {
    if (timer) return stop();
    if (Number(slider.value) === last) show(0);
    button.textContent = "Stop";
    timer = setInterval(() => {
      show(Number(slider.value) + 1);
      if (Number(slider.value) === last) stop();
    }, 500);
  }

  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  button.addEventListener("click", play);
  for (const control of bar.querySelectorAll("[data-script]")) control.hidden = false;
  show(last);
})();
