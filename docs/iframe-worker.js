// Browsers run no web workers for pages that are opened from files. The search's worker then runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super()
      this.waiting = [] // messages that came before the script was loaded
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.appendChild(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => this.tell(this, data) // what the script calls to answer
      this.inside.importScripts = (...scripts) => Promise.all(scripts.map(each => this.load(each)))
      this.load(script).then(() => {
        for (const data of this.waiting) this.tell(this.inside, data)
        this.waiting = null
      })
    }
    load(script) {
      return new Promise((loaded, failed) => {
        const tag = this.inside.document.createElement("script")
        tag.src = new URL(script, location)
        tag.onload = loaded
        tag.onerror = failed
        this.inside.document.head.appendChild(tag)
      })
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.tell(this.inside, data)
    }
    tell(target, data) {
      const event = new MessageEvent("message", { data })
      target.dispatchEvent(event)
      target.onmessage?.(event)
    }
    terminate() {
      this.inside.frameElement.remove()
    }
  }
}
