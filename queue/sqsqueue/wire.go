package sqsqueue

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/oncemore-jobs/oncemore/queue"
)

// The body of a message is JSON, described in docs/wire-format.md: one item beside the
// type, or many as "items". It is written and cut here rather than by encoding/json, which
// compacts what is raw: arguments arrive byte for byte as they were sent.

// wireVersion is that of the format. A body may name it; what is newer is not guessed at.
const wireVersion = 1

// encode writes m as a body with the items from and to (excluded) of it.
func encode(m *queue.Message, from, to int) []byte {
	items := m.Items[from:to]
	size := 200 + len(m.Type)
	for i := range items {
		size += len(items[i].Entity) + len(items[i].Args) + 30
	}
	b := make([]byte, 0, size)
	b = append(b, `{"type":`...)
	b = appendString(b, m.Type)
	if len(items) == 1 {
		b = append(b, ',')
		b = appendItem(b, &items[0])
	} else {
		b = append(b, `,"items":[`...)
		for i := range items {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, '{')
			b = appendItem(b, &items[i])
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	for _, n := range []struct {
		key   string
		value int64
	}{
		{"run", m.Run}, {"pack", int64(m.Pack)}, {"epoch", m.Epoch},
		{"priority", int64(m.Priority)}, {"deferred", int64(m.Deferred)},
	} {
		if n.value != 0 {
			b = fmt.Appendf(b, `,%q:%d`, n.key, n.value)
		}
	}
	if m.Trace != "" && !plain(m.Trace) {
		b = append(b, `,"trace":`...)
		b = appendString(b, m.Trace)
	}
	return append(b, '}')
}

func appendItem(b []byte, it *queue.Item) []byte {
	b = append(b, `"entity":`...)
	b = appendString(b, it.Entity)
	b = append(b, `,"args":`...)
	return appendArgs(b, it.Args)
}

// appendString writes s as JSON of characters that SQS carries.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < 0x20 || r == 0x7f || r == 0xfffe || r == 0xffff:
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// appendArgs writes arguments as they are, but for the two characters of JSON that SQS
// refuses. They can stand only in strings, where an escape means the same.
func appendArgs(b, args []byte) []byte {
	if !bytes.Contains(args, []byte("\xef\xbf\xbe")) && !bytes.Contains(args, []byte("\xef\xbf\xbf")) {
		return append(b, args...)
	}
	args = bytes.ReplaceAll(args, []byte("\xef\xbf\xbe"), []byte(`\ufffe`))
	return append(b, bytes.ReplaceAll(args, []byte("\xef\xbf\xbf"), []byte(`\uffff`))...)
}

// plain tells whether SQS carries s as the value of an attribute.
func plain(s string) bool {
	for _, r := range s {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff {
			return false
		}
	}
	return s != ""
}

// decode reads a body. On an error the message has what was understood.
func decode(body []byte) (queue.Message, error) {
	var m queue.Message
	if !utf8.Valid(body) || !json.Valid(body) {
		return m, errors.New("the body is not JSON")
	}
	var only queue.Item // of the form without items
	var single, many bool
	err := members(body, func(key string, value []byte) (err error) {
		switch key {
		case "v":
			var v int64
			if v, err = integer(key, value, math.MaxInt32); err == nil && v != wireVersion {
				err = fmt.Errorf("the body is of version %d, known is %d", v, wireVersion)
			}
		case "type":
			m.Type, err = text(key, value)
		case "entity":
			only.Entity, err = text(key, value)
			single = true
		case "args":
			only.Args = bytes.Clone(value)
			single = true
		case "items":
			m.Items, err = decodeItems(value)
			many = true
		case "run":
			m.Run, err = integer(key, value, math.MaxInt64)
		case "pack":
			err = small(&m.Pack, key, value)
		case "epoch":
			m.Epoch, err = integer(key, value, math.MaxInt64)
		case "priority":
			err = small(&m.Priority, key, value)
		case "deferred":
			err = small(&m.Deferred, key, value)
		case "trace":
			m.Trace, err = text(key, value)
		}
		return err
	})
	switch {
	case err != nil:
		return m, err
	case single && many:
		return m, errors.New(`the body has both "items" and an item of its own`)
	case single:
		m.Items = []queue.Item{only}
	}
	return m, nil
}

// decodeItems reads the items of a pack. One that is none, since it has no arguments or no name
// that may be one, takes nothing from its neighbours: it has no good entity, and as its
// arguments all that stands there, so that it is set aside alone and whole.
func decodeItems(array []byte) ([]queue.Item, error) {
	var items []queue.Item
	err := elements(array, func(value []byte) error {
		var it queue.Item
		err := members(value, func(key string, value []byte) (err error) {
			switch key {
			case "entity":
				it.Entity, err = text(key, value)
			case "args":
				it.Args = bytes.Clone(value)
			}
			return err
		})
		if err != nil || it.Args == nil {
			it.Entity = ""
		}
		if queue.CheckName("entity", it.Entity) != nil {
			it.Args = bytes.Clone(bytes.Trim(value, jsonSpace))
		}
		items = append(items, it)
		return nil
	})
	return items, err
}

func text(key string, value []byte) (string, error) {
	v := bytes.Trim(value, jsonSpace)
	if v[0] != '"' {
		return "", fmt.Errorf("%q is %.40s, want a string", key, v)
	}
	return unquote(v)
}

// unquote reads a string of JSON that is valid and in UTF-8. Most have no escapes, and are
// what stands there.
func unquote(quoted []byte) (s string, err error) {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1]), nil
	}
	return s, json.Unmarshal(quoted, &s)
}

func integer(key string, value []byte, most int64) (int64, error) {
	n, err := strconv.ParseInt(string(bytes.Trim(value, jsonSpace)), 10, 64)
	if err != nil || n > most || n < -most {
		return 0, fmt.Errorf("%q is %.40s, want an integer of at most %d", key, value, most)
	}
	return n, nil
}

func small(to *int, key string, value []byte) error {
	n, err := integer(key, value, math.MaxInt32)
	*to = int(n)
	return err
}

const jsonSpace = " \t\r\n"

// members calls f with the key and the value of each member of a JSON object, the white
// space around the value included. The JSON must be valid.
func members(object []byte, f func(key string, value []byte) error) error {
	return parts(object, '{', func(part []byte) error {
		begin := bytes.IndexByte(part, '"')
		end := skipString(part, begin)
		key, err := unquote(part[begin:end])
		if err != nil {
			return err
		}
		colon := end + bytes.IndexByte(part[end:], ':')
		return f(key, part[colon+1:])
	})
}

// elements calls f with each value of a JSON array, the white space around it included.
// The JSON must be valid.
func elements(array []byte, f func(value []byte) error) error { return parts(array, '[', f) }

// parts calls f with what stands between the commas of an object or an array.
func parts(b []byte, open byte, f func(part []byte) error) error {
	b = bytes.Trim(b, jsonSpace)
	if b[0] != open {
		return fmt.Errorf("there is %.40s, want %q", b, open)
	}
	b = b[1 : len(b)-1]
	if len(bytes.Trim(b, jsonSpace)) == 0 {
		return nil
	}
	depth, start := 0, 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i = skipString(b, i) - 1
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ',':
			if depth == 0 {
				if err := f(b[start:i]); err != nil {
					return err
				}
				start = i + 1
			}
		}
	}
	return f(b[start:])
}

// skipString returns where the string ends that begins at b[i].
func skipString(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}
