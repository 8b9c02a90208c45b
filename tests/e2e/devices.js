"use strict";
// A camera for a browser that cannot play files as its devices: pictures with the bar code of tests.media, drawn
// here. The code says the UTC time in ms, modulo 2**32.
const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async ({ video, audio }) => {
  const stream = new MediaStream();
  const number = stage.party;
  if (video) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [640, 360];
    const context = canvas.getContext("2d");
    const draw = () => {
      const now = BigInt(Date.now()) % 4294967296n;
      const payload = (BigInt(number) << 32n) | now;
      let crc = 0xff;
      for (let index = 35n; index >= 0n; index -= 1n) {
        const bit = Number((payload >> index) & 1n);
        crc = ((crc << 1) ^ (((crc >> 7) ^ bit) & 1 ? 0x07 : 0)) & 0xff;
      }
      const word = (2n << 46n) | (payload << 10n) | (BigInt(crc) << 2n) | 1n;
      context.fillStyle = "#467";
      context.fillRect(0, 0, 640, 360);
      context.fillStyle = "#ddd";
      context.fillRect(150 + Number(now % 2000n) / 8, 310, 40, 30);
      for (let cell = 0; cell < 48; cell += 1) {
        context.fillStyle = (word >> BigInt(47 - cell)) & 1n ? "#fff" : "#000";
        context.fillRect(192 + (cell % 16) * 16, 208 + Math.floor(cell / 16) * 16, 16, 16);
      }
    };
    draw();
    setInterval(draw, 1000 / video.frameRate);
    stream.addTrack(canvas.captureStream(video.frameRate).getVideoTracks()[0]);
  }
  // Without a sound card a Firefox' AudioContext never runs; its own fake microphone, a steady tone, does.
  if (audio) for (const track of (await real({ audio: true })).getAudioTracks()) stream.addTrack(track);
  return stream;
};
