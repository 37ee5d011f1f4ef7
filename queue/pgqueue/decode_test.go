package pgqueue

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// textArray is a text[] in binary format.
func textArray(texts ...string) []byte {
	if len(texts) == 0 {
		return []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, textOID}
	}
	b := []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, textOID}
	b = binary.BigEndian.AppendUint32(b, uint32(len(texts)))
	b = append(b, 0, 0, 0, 1)
	for _, s := range texts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

func TestDecodeItems(t *testing.T) {
	items, err := decodeItems(textArray("a", "", "ü"), textArray("{}", "[1]", `"é"`))
	if err != nil || len(items) != 3 || items[0].Entity != "a" || items[1].Entity != "" || items[2].Entity != "ü" ||
		string(items[0].Args) != "{}" || string(items[1].Args) != "[1]" || string(items[2].Args) != `"é"` {
		t.Fatalf("%v, %v", items, err)
	}
	if cap(items[0].Args) != 2 {
		t.Error("appending to one item's arguments would overwrite the next one's")
	}
	null := textArray("a")
	copy(null[20:], []byte{255, 255, 255, 255})
	twoDimensions := textArray("a")
	twoDimensions[3] = 2
	ok := textArray("a")
	for name, bad := range map[string][]byte{
		"nothing": nil, "empty": textArray(), "shorter": ok[:len(ok)-1], "longer": append(bytes.Clone(ok), 0),
		"null": null, "two dimensions": twoDimensions, "two elements": textArray("a", "b"), "cut in the head": ok[:15],
	} {
		if items, err := decodeItems(ok, bad); err == nil {
			t.Errorf("%s: decoded as %v", name, items)
		}
		if items, err := decodeItems(bad, ok); err == nil {
			t.Errorf("%s: decoded as %v", name, items)
		}
	}
}

// No bytes make the decoder panic, take memory beyond its input's size, or accept
// what it would not write the same.
func FuzzDecodeItems(f *testing.F) {
	f.Add(textArray("a", "b"), textArray("{}", "[]"))
	f.Add(textArray(), textArray())
	f.Add(textArray("a")[:14], []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, entities, args []byte) {
		items, err := decodeItems(entities, args)
		if err != nil {
			return
		}
		var es, as []string
		for _, it := range items {
			es, as = append(es, it.Entity), append(as, string(it.Args))
		}
		if got := textArray(es...); !bytes.Equal(got[20:], entities[20:]) || len(es) == 0 {
			t.Errorf("entities %x came out as %x", entities, got)
		}
		if got := textArray(as...); !bytes.Equal(got[20:], args[20:]) {
			t.Errorf("args %x came out as %x", args, got)
		}
	})
}
