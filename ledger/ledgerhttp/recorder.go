package ledgerhttp

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
)

// ErrResponseTooLarge is what a handler's Write returns for an answer that is longer than
// [Operation].MaxResponse.
var ErrResponseTooLarge = errors.New("the response is longer than an operation's MaxResponse")

// A recorder takes a handler's answer, so that it can be stored before anybody sees it. It
// has nothing but the methods of a ResponseWriter: a handler that asks for Flush or Hijack
// finds neither, and knows.
type recorder struct {
	outer  http.Header // what was set before the handler
	header http.Header // begins with that, as behind any middleware
	status int         // 0: not yet said
	body   bytes.Buffer
	most   int
	err    error
	sealed http.Header // as it was when the status was said
}

func newRecorder(outer http.Header, most int) *recorder {
	header := outer.Clone()
	if header == nil {
		header = http.Header{}
	}
	return &recorder{outer: outer, header: header, most: most}
}

func (rec *recorder) Header() http.Header { return rec.header }

func (rec *recorder) WriteHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %v", status)) // as net/http has it
	}
	if rec.status != 0 || status < 200 {
		return // informational ones are not the answer, and cannot be shown again
	}
	rec.status, rec.sealed = status, rec.header.Clone()
}

func (rec *recorder) Write(p []byte) (int, error) {
	if rec.status == 0 {
		rec.WriteHeader(http.StatusOK)
	}
	switch {
	case !bodyAllowed(rec.status):
		return 0, http.ErrBodyNotAllowed
	case rec.body.Len()+len(p) > rec.most:
		rec.err = ErrResponseTooLarge
		return 0, rec.err
	}
	return rec.body.Write(p)
}

func bodyAllowed(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}

// answer is what the handler has written, complete as net/http would have completed it.
func (rec *recorder) answer() *answer {
	if rec.status == 0 {
		rec.WriteHeader(http.StatusOK)
	}
	h := rec.sealed
	// Now and when it is shown again it must be the same, whatever a later version would guess.
	// An encoding that was set before the handler is yet to come.
	if _, said := h["Content-Type"]; !said && rec.body.Len() > 0 && h.Get("Content-Encoding") == rec.outer.Get("Content-Encoding") {
		h.Set("Content-Type", http.DetectContentType(rec.body.Bytes()))
	}
	for _, name := range []string{"Content-Length", "Transfer-Encoding", "Connection", "Trailer"} {
		delete(h, name) // they are of the message, which net/http makes anew
		if values, said := rec.outer[name]; said {
			h[name] = values
		}
	}
	return &answer{status: rec.status, header: h, outer: rec.outer, body: rec.body.Bytes()}
}
