package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
)

// Texts that are not of the type string.
type (
	tenant string
	path   struct{ dir, name string }
	broken struct{}
)

func (p path) String() string { return p.dir + "/" + p.name }
func (broken) String() string { panic("no text") }

// The parts can be read back from the key.
func TestDifferentPartsNeverMakeTheSameKey(t *testing.T) {
	if got := jobs.Key(234, int64(17), "a/b%"); got != "234/17/a%2Fb%25" {
		t.Error(got)
	}
	for name, part := range map[string]func(string) any{
		"texts":                 func(s string) any { return s },
		"texts of a named type": func(s string) any { return tenant(s) },
		"values with a String":  func(s string) any { return path{s, "x"} },
		"pointers to such":      func(s string) any { return &url.URL{Path: "/" + s} },
	} {
		t.Run(name, func(t *testing.T) {
			unescape := strings.NewReplacer("%25", "%", "%2F", "/")
			rapid.Check(t, func(t *rapid.T) {
				var parts, texts []any
				for _, s := range rapid.SliceOfN(rapid.StringOf(rapid.RuneFrom([]rune("/%25Fab"))), 1, 4).Draw(t, "parts") {
					parts = append(parts, part(s))
					texts = append(texts, fmt.Sprint(part(s)))
				}
				var read []any
				for s := range strings.SplitSeq(jobs.Key(parts...), "/") {
					read = append(read, unescape.Replace(s))
				}
				if !slices.Equal(read, texts) {
					t.Fatalf("%q make %q, which is read as %q", texts, jobs.Key(parts...), read)
				}
			})
		})
	}
}

func TestAPartIsWrittenAsItsText(t *testing.T) {
	type number int64
	for want, part := range map[string]any{
		"-7": int8(-7), "7": number(7), "18446744073709551615": ^uint64(0), "true": true, "1.5": 1.5, "a": tenant("a"),
		"2.5s":            2500 * time.Millisecond,
		"10.0.0.0%2F8":    netip.MustParsePrefix("10.0.0.0/8"),
		"123":             big.NewInt(123),
		"[1 2]":           [2]byte{1, 2},
		"[3 4]":           []number{3, 4},
		"a%2Fb":           path{"a", "b"},
		"code 7":          named(7),
		"0.1234567890123": big.NewFloat(0.1234567890123), // its String has ten digits
	} {
		if got := jobs.Key(part); got != want {
			t.Errorf("%T is written as %q, want %q", part, got, want)
		}
	}
}

// What fmt would ask for a text before the value, or its String.
type (
	rejected int
	masked   int
	named    int
)

func (rejected) Error() string            { return "rejected" }
func (masked) Format(f fmt.State, _ rune) { fmt.Fprint(f, "***") }
func (named) Error() string               { return "refused" }
func (n named) String() string            { return "code " + strconv.Itoa(int(n)) }

type keyed struct{ part any }

func (keyed) JobType() string  { return "keyed" }
func (k keyed) Entity() string { return jobs.Key("a", k.part, "b") }

// The text of some values is not theirs alone, or is another one in each process. Work that shared
// an entity by accident would be skipped as done.
func TestAPartWhoseTextIsNoIdentityIsRefused(t *testing.T) {
	n := 7
	for _, part := range []any{
		nil, &n, (*int)(nil), (*url.URL)(nil), func() {}, make(chan int), map[string]string{"a": "b c:d"}, unsafe.Pointer(&n),
		[]string{"a b"}, [1]string{"a b"}, []any{1}, struct{ A, B string }{"a b", "c"}, errors.New("a"), rejected(7), []rejected{7}, masked(7), broken{}, []path{{"a", "b"}}, [][]string{{"a"}},
	} {
		k := keyed{part}
		if err := queue.CheckName("entity", "prefix/"+k.Entity()); !errors.Is(err, queue.ErrInvalid) {
			t.Errorf("%T makes the key %q", part, k.Entity())
		}
		if _, err := jobs.NewItem(k); !errors.Is(err, queue.ErrInvalid) || !strings.Contains(err.Error(), fmt.Sprintf("%.20s", fmt.Sprintf("%T", part))) {
			t.Errorf("%T: an item: %v", part, err)
		}
		if err := jobs.Enqueue(t.Context(), unused{}, k); !errors.Is(err, queue.ErrInvalid) {
			t.Errorf("%T: enqueueing: %v", part, err)
		}
	}
	e := decoder(t, jobs.Job[keyed]{Effect: jobs.Once, Do: func(context.Context, keyed) error { return nil }})
	if _, err := e.Decode("a//b", []byte(`{}`)); err == nil {
		t.Error("arguments without an identity were accepted")
	}
}
