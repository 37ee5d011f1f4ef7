package ledgerhttp

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// Docs is where the problems are described, unless [Config].Docs names another place.
const Docs = "https://github.com/oncemore-jobs/oncemore/blob/main/docs/idempotency-key.md"

// A problem is an answer of ours, as RFC 9457 has it. Its type is the address of its
// description: a place in the documentation.
type problem struct {
	slug   string
	status int
	title  string
	detail string
	retry  bool // the same request, sent again later, may get another answer
}

var (
	keyMissing     = problem{"key-missing", http.StatusBadRequest, "Idempotency-Key is missing", "This operation needs an Idempotency-Key: a string that the client makes up, once for what it wants done, and sends with every try.", false}
	keyInvalid     = problem{"key-invalid", http.StatusBadRequest, "Idempotency-Key is not valid", "", false}
	keyReused      = problem{"key-reused", http.StatusUnprocessableEntity, "Idempotency-Key is already used", "The key was sent before with another request. What is wanted anew needs a new key; what is sent again must be the same.", false}
	ongoing        = problem{"request-ongoing", http.StatusConflict, "A request is outstanding for this Idempotency-Key", "The same request is being worked on. Send it again later, with the same key.", true}
	outcomeUnknown = problem{"outcome-unknown", http.StatusConflict, "The outcome of the earlier request is unknown", "An earlier try with this key was interrupted, and its effect may or may not have happened. It is not tried again until somebody has found out.", false}
	expired        = problem{"response-expired", http.StatusConflict, "The response is no longer kept", "The request had its final answer, and will not be carried out again under this key. Whether it was done or refused is not known here any more.", false}
	gone           = problem{"response-gone", http.StatusGone, "The response is no longer kept", "The request had its final answer. Whether it was done or refused is not known here any more.", false}
	unfinished     = problem{"request-unfinished", http.StatusConflict, "The request came to no final answer", "A try ended without one. Send the request again, with the same key: it is tried if its effect may be, else it is said that nobody knows.", false}
	unknown        = problem{"request-unknown", http.StatusNotFound, "No such request is known", "It has not come, or it failed and what it did was undone: send it again, with the same key.", false}
	tooLarge       = problem{"request-too-large", http.StatusRequestEntityTooLarge, "The request is too large", "", false}
	unreadable     = problem{"request-unreadable", http.StatusBadRequest, "The request could not be read", "", false}
	consumed       = problem{"request-consumed", http.StatusInternalServerError, "The request could not be read", "The server has lost the request's body before it could be compared. Nothing was done.", false}
	unidentified   = problem{"caller-unknown", http.StatusUnauthorized, "The caller is not known", "A key belongs to a caller, and this request does not say whose it is.", false}
	unstorable     = problem{"response-too-large", http.StatusInternalServerError, "The response is too large to be kept", "The operation's answer is longer than the server may keep.", false}
	aborted        = problem{"transaction-failed", http.StatusInternalServerError, "The operation failed", "Nothing was changed. The server's log says more.", false}
	unkept         = problem{"unavailable-without-key", http.StatusServiceUnavailable, "The request could not be brought to its end", "Without an Idempotency-Key nobody can tell whether it was done.", false}
	unaskable      = unavailable.because("Who calls cannot be found out now. Send it again later.")
	unavailable    = problem{"unavailable", http.StatusServiceUnavailable, "The request could not be brought to its end", "Send it again with the same key: if it was done, its answer will be found.", true}
)

// because returns p with another detail.
func (p problem) because(detail string) problem {
	p.detail = detail
	return p
}

// write answers with p. What the headers have already stays, unless p says otherwise.
func (p problem) write(w http.ResponseWriter, docs string, retryAfter time.Duration) {
	body, _ := json.Marshal(struct { // strings and a number: it cannot fail
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail,omitempty"`
	}{docs + "#" + p.slug, p.title, p.status, p.detail})
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Language", "en")
	h.Set("Cache-Control", "no-store")
	h.Set("Link", "<"+docs+`>; rel="describedby"; type="text/html"`)
	if p.retry {
		h.Set("Retry-After", seconds(retryAfter))
	}
	w.WriteHeader(p.status)
	_, _ = w.Write(append(body, '\n')) // the client may have gone
}

// seconds rounds up: a client that comes a little later is answered sooner.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
