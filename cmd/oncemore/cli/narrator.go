package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// A narrator tells a story line by line, with a line below that shows how far it is: on a
// terminal it is written over, elsewhere there is one each second.
type narrator struct {
	w        io.Writer
	terminal bool
	colours  bool
	began    time.Time
	shown    time.Time // when progress was shown last
	text     string
	live     bool // the progress line is on the terminal
}

func newNarrator(w io.Writer) *narrator {
	return &narrator{w: w, terminal: isTerminal(w), colours: colours(w), began: time.Now(), shown: time.Now()}
}

func (n *narrator) say(format string, args ...any) {
	n.clear()
	at := fmt.Sprintf("%5.1fs", time.Since(n.began).Seconds())
	if n.colours {
		at = "\x1b[2m" + at + "\x1b[0m"
	}
	fmt.Fprintf(n.w, "%s  %s\n", at, fmt.Sprintf(format, args...))
}

// progress shows text and the part that is done, from 0 to 1.
func (n *narrator) progress(text string, done float64) {
	every := time.Second
	if n.terminal {
		every = 100 * time.Millisecond
	}
	if now := time.Now(); now.Sub(n.shown) < every || text == n.text {
		return
	} else {
		n.shown, n.text = now, text
	}
	if !n.terminal {
		fmt.Fprintf(n.w, "%5.1fs    %s\n", time.Since(n.began).Seconds(), text)
		return
	}
	const width = 20
	full := int(done*width + 0.5)
	fmt.Fprintf(n.w, "\r\x1b[K        %s%s  %s", strings.Repeat("█", full), strings.Repeat("░", width-full), text)
	n.live = true
}

// clear takes the progress line away.
func (n *narrator) clear() {
	if n.live {
		fmt.Fprint(n.w, "\r\x1b[K")
		n.live = false
	}
}
