// Connections that outlive this machine's addresses.

let frame = null;

/**
 * Make a connection that is bound to no network interface; null where that brings nothing.
 *
 * A page that may use the camera learns of all interfaces, and Chromium binds each socket to the address of one. When
 * the address goes, the sockets are dead, and the page learns of the new one up to 2 s later. In a frame that may use
 * neither camera nor microphone Chromium binds to no address, and the system sends by whatever way there is, at once.
 */
export function roamingConnection(settings) {
  if (!navigator.userAgentData?.brands.some(({ brand }) => brand === "Chromium")) return null;
  if (!frame) {
    frame = document.createElement("iframe");
    frame.hidden = true;
    frame.allow = "camera 'none'; microphone 'none'";
    document.body.append(frame);
  }
  return new frame.contentWindow.RTCPeerConnection(settings);
}
