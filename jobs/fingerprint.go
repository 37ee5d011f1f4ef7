package jobs

import (
	"bytes"
	"errors"
	"hash/fnv"
	"slices"
)

// fingerprintRule is the upper byte of every fingerprint: the ledger compares only those
// of the same rule. Raise it when the rule changes. Rule 1 followed the order of the fields
// in the Go code.
const fingerprintRule = 2

// fingerprint is 56 bits of FNV-1a over the arguments, as json.Marshal wrote them, with the
// members of objects in the order of their names, and without the member leave of the outermost
// one ("": none). It tells other arguments apart, not hostile ones. It changes encoded.
func fingerprint(encoded []byte, leave string) (int64, error) {
	var few [16]member // of the objects that are open at a time; more of them are allocated
	end := 0
	switch {
	case encoded[0] == '{':
		end = sortObject(encoded, 0, few[:0], leave)
	case leave != "":
		return 0, errors.New("are not a JSON object")
	default:
		end = sortValue(encoded, 0, few[:0])
	}
	h := fnv.New64a()
	h.Write(encoded[:end])
	return fingerprintRule<<56 | int64(h.Sum64()>>8), nil
}

// A member of an object is text[at:end], and its name text[at:colon], with the quotes.
type member struct{ at, colon, end int }

// sortValue puts the members of all objects in the value at i in order, and returns where it ends.
// They move within the text, and no byte of a name or a value changes: large numbers stay what
// they are. Every delivery passes here, so what is in order already costs one look at each byte.
// The text is valid JSON without spaces: json.Marshal saw to that, also for what a MarshalJSON
// returned. The members of the objects around i are in above, and stay there.
func sortValue(text []byte, i int, above []member) int {
	switch text[i] {
	case '{':
		return sortObject(text, i, above, "")
	case '[':
		for i++; text[i] != ']'; {
			if text[i] == ',' {
				i++
			}
			i = sortValue(text, i, above)
		}
		return i + 1
	case '"':
		return endOfString(text, i)
	}
	for i < len(text) && text[i] != ',' && text[i] != ']' && text[i] != '}' {
		i++
	}
	return i
}

func sortObject(text []byte, i int, above []member, leave string) int {
	inside, members, ordered := i+1, above, leave == ""
	for i++; text[i] != '}'; {
		if text[i] == ',' {
			i++
		}
		m := member{at: i, colon: endOfString(text, i)}
		m.end = sortValue(text, m.colon+1, members)
		if len(members) > len(above) && compareNames(text, members[len(members)-1], m) > 0 {
			ordered = false
		}
		members = append(members, m)
		i = m.end
	}
	if !ordered {
		i = inside + rewrite(text, inside, i, members[len(above):], leave)
		text[i] = '}' // nearer than it was where a member was left out, of the outermost object only
	}
	return i + 1
}

// rewrite puts the members between at and end in order, and returns their length. Those of one
// name keep their order, since the last one counts.
func rewrite(text []byte, at, end int, members []member, leave string) int {
	slices.SortStableFunc(members, func(a, b member) int { return compareNames(text, a, b) })
	moved := make([]byte, 0, end-at)
	for _, m := range members {
		if leave != "" && string(text[m.at+1:m.colon-1]) == leave {
			continue
		}
		if len(moved) > 0 {
			moved = append(moved, ',')
		}
		moved = append(moved, text[m.at:m.end]...)
	}
	return copy(text[at:], moved)
}

func compareNames(text []byte, a, b member) int {
	return bytes.Compare(text[a.at:a.colon], text[b.at:b.colon])
}

func endOfString(text []byte, i int) int {
	for i++; text[i] != '"'; i++ {
		if text[i] == '\\' {
			i++
		}
	}
	return i + 1
}
