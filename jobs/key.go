package jobs

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Key joins parts to an entity, as Key(234, 17) = "234/17". A slash or percent sign
// inside a part is escaped, so that different parts never make the same key. SQL makes
// the same text by event_id || '/' || invitee_id, where the parts are numbers.
//
// Parts are texts, numbers and truths, of named types too, arrays and slices of numbers or
// truths, and what has a method String: that must then tell one value from another. Anything
// else (a pointer, a map, a struct, nil) has no text that is its identity: the key then
// contains a NUL, and no queue, worker or ledger takes such an entity.
func Key(parts ...any) string {
	var b strings.Builder
	for i, p := range parts {
		if i > 0 {
			b.WriteByte('/')
		}
		switch p := p.(type) { // the usual ones, without a detour
		case string:
			b.WriteString(ledger.KeyPart(p))
		case int:
			b.WriteString(strconv.Itoa(p))
		case int64:
			b.WriteString(strconv.FormatInt(p, 10))
		default:
			b.WriteString(ledger.KeyPart(partText(p)))
		}
	}
	return b.String()
}

// noPart begins the text of what can be no part of a key. Such a key must not name work: two
// pieces of work could share it, and the second would be skipped as done. It is no panic, since
// Entity is called in many places, and all of them refuse a NUL.
const noPart = "\x00"

func partText(p any) string {
	t := reflect.TypeOf(p)
	if hasText(t) && (t.Kind() != reflect.Pointer || !reflect.ValueOf(p).IsNil()) {
		if text, ok := textOf(p); ok {
			return text
		}
	}
	return fmt.Sprintf(noPart+"%T is no part of a key", p)
}

// textOf is what p says of itself, or what fmt writes of it; ok is false where that panics.
func textOf(p any) (text string, ok bool) {
	defer func() { _ = recover() }()
	s, says := p.(fmt.Stringer)
	if _, writes := p.(fmt.Formatter); says && !writes {
		return s.String(), true
	}
	text = fmt.Sprint(p)
	return text, !strings.HasPrefix(text, "%!v(PANIC=")
}

// What fmt asks for a text before, or instead of, looking at the value.
var (
	stringer  = reflect.TypeFor[fmt.Stringer]()
	formatter = reflect.TypeFor[fmt.Formatter]()
	failure   = reflect.TypeFor[error]()
)

// hasText tells whether what is written of values of t tells them apart.
func hasText(t reflect.Type) bool {
	switch {
	case t == nil:
		return false
	case t.Implements(stringer):
		return true
	case t.Kind() == reflect.Array || t.Kind() == reflect.Slice: // of texts, "[a b]" could be one or two
		return bare(t) && plain(t.Elem().Kind()) && bare(t.Elem())
	}
	return bare(t) && (t.Kind() == reflect.String || plain(t.Kind()))
}

// bare tells whether fmt writes the values of t, and not what they say of themselves.
func bare(t reflect.Type) bool {
	return !t.Implements(stringer) && !t.Implements(formatter) && !t.Implements(failure)
}

func plain(k reflect.Kind) bool { return reflect.Bool <= k && k <= reflect.Complex128 }
