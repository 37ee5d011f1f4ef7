package ledgerhttp

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Header is the name of the request header that carries the key.
const Header = "Idempotency-Key"

// maxKey is in characters, which are bytes: no other than ASCII is a key.
const maxKey = 255

var errNoKey = errors.New("the request has no " + Header)

// keyOf reads the key: a string of RFC 8941 (Structured Fields), in quotes, or, as many
// clients send it, its characters alone. Both forms of one string are one key. Parameters
// are not taken: nothing defines any.
func keyOf(h http.Header) (string, error) {
	values := h.Values(Header)
	switch {
	case len(values) == 0:
		return "", errNoKey
	case len(values) > 1:
		return "", fmt.Errorf("the request has %d %s headers, allowed is one", len(values), Header)
	}
	key, err := unquote(strings.Trim(values[0], " \t"))
	if err == nil {
		err = checkKey(key)
	}
	if err != nil {
		return "", err
	}
	return key, nil
}

func checkKey(key string) error {
	switch {
	case key == "":
		return errors.New("the key is empty")
	case len(key) > maxKey:
		return fmt.Errorf("the key has %d characters, allowed are %d", len(key), maxKey)
	}
	return nil
}

func unquote(s string) (string, error) {
	inner, quoted := strings.CutPrefix(s, `"`)
	if !quoted {
		for _, c := range []byte(s) {
			if c <= ' ' || c > '~' || strings.IndexByte(`",;\`, c) >= 0 {
				return "", fmt.Errorf("the key has the character %q: put it in double quotes, as a string of RFC 8941", c)
			}
		}
		return s, nil
	}
	var key strings.Builder
	for i := 0; i < len(inner); i++ {
		switch c := inner[i]; {
		case c == '"' && i == len(inner)-1:
			return key.String(), nil
		case c == '"':
			return "", errors.New("something follows the closing quote of the key")
		case c == '\\':
			if i++; i == len(inner) || inner[i] != '"' && inner[i] != '\\' {
				return "", errors.New(`in a key a backslash stands before a quote or a backslash only`)
			}
			key.WriteByte(inner[i])
		case c < ' ' || c > '~':
			return "", fmt.Errorf("the key has the character %q, which is not printable ASCII", c)
		default:
			key.WriteByte(c)
		}
	}
	return "", errors.New("the closing quote of the key is missing")
}

// entityOf names a request within its operation. Each part is escaped, so that no scope can
// pass for another's with a key; what is too long for an index is named by its digest.
func entityOf(method, scope, key string) string {
	return part(method, 40) + " " + part(scope, 200) + " " + part(key, 200)
}

func part(s string, most int) string {
	if escaped := url.QueryEscape(s); len(escaped) <= most {
		return escaped
	}
	digest := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(digest[:]) // a colon is never left unescaped
}

// A Fingerprint is a rule of what makes two requests the same.
type Fingerprint struct {
	Rule int // its number, 1 to 99, another one for every change of Of
	// Of writes what is compared. The body is the whole of it; r.Body is not to be read.
	Of func(w io.Writer, r *http.Request, body []byte)
}

// The numbers from 100 are ours.
var wholeRequest = Fingerprint{Rule: 101, Of: func(w io.Writer, r *http.Request, body []byte) {
	for _, s := range []string{r.Method, r.URL.EscapedPath(), r.URL.RawQuery} {
		fmt.Fprintf(w, "%d %s\n", len(s), s)
	}
	_, _ = w.Write(body)
}}

// of is the ledger's form: the rule's number in the upper bits, and 56 bits of a digest.
func (f *Fingerprint) of(r *http.Request, body []byte) int64 {
	h := sha256.New()
	f.Of(h, r, body)
	return int64(f.Rule)<<56 | int64(binary.BigEndian.Uint64(h.Sum(nil))>>8)
}
