package pgqueue

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/queue"
)

func FuzzAReceiptIsReadAsItWasWrittenAndNothingElseNamesALock(f *testing.F) {
	for _, s := range []string{"1:2", "0:0", ":", "9223372036854775807:9223372036854775807", "-1:1", "1:-1", "1:2:3", " 1:2", "1", "9223372036854775808:1", "1:0x1", "١:١"} {
		f.Add(s, int64(len(s)), int64(1)<<len(s))
	}
	f.Fuzz(func(t *testing.T, s string, id, lock int64) {
		if i, l, ok := parseReceipt(receipt(id, lock)); ok != (lock > 0) || ok && (i != id || l != lock) {
			t.Errorf("the receipt of %d, %d is read as %d, %d, %t", id, lock, i, l, ok)
		}
		if i, l, ok := parseReceipt(s); ok && (l <= 0 || fmt.Sprintf("%d:%d", i, l) != strings.NewReplacer("+", "").Replace(trimZeros(s))) {
			t.Errorf("%q is read as %d, %d", s, i, l)
		}
		if err := known([]queue.Delivery{{Receipt: s}}); err != nil && len(err.Error()) > 300 {
			t.Errorf("the error is %q", err)
		}
	})
}

// trimZeros writes numbers without the zeros that they may begin with.
func trimZeros(s string) string {
	parts := strings.Split(s, ":")
	for i, p := range parts {
		sign := ""
		if p != "" && (p[0] == '-' || p[0] == '+') {
			sign, p = p[:1], p[1:]
		}
		if p = strings.TrimLeft(p, "0"); p == "" {
			p, sign = "0", ""
		}
		parts[i] = sign + p
	}
	return strings.Join(parts, ":")
}

// aRow is one row as the server sends it.
type aRow struct {
	pgx.Rows
	fields []pgconn.FieldDescription
	values [][]byte
}

func (r *aRow) FieldDescriptions() []pgconn.FieldDescription { return r.fields }
func (r *aRow) RawValues() [][]byte                          { return r.values }
func (r *aRow) TypeMap() *pgtype.Map                         { return types }
func (r *aRow) Scan(to ...any) error                         { return pgx.ScanRow(types, r.fields, r.values, to...) }

var types = pgtype.NewMap()

// row encodes a message as a row in the given format.
func row(t *testing.T, format int16, values ...any) *aRow {
	t.Helper()
	r := &aRow{}
	for i, oid := range []uint32{pgtype.Int8OID, pgtype.Int8OID, pgtype.Int2OID, pgtype.Int4OID, pgtype.Int2OID, pgtype.Int8OID,
		pgtype.Int4OID, pgtype.Int8OID, textOID, textOID, textArrayOID, textArrayOID} {
		v, err := types.Encode(oid, format, values[i], []byte{})
		if err != nil {
			t.Fatal(err)
		}
		r.fields, r.values = append(r.fields, pgconn.FieldDescription{DataTypeOID: oid, Format: format}), append(r.values, v)
	}
	return r
}

// However pgx is told to speak to the server, a row is the same delivery.
func FuzzARowIsTheSameDeliveryInBothFormats(f *testing.F) {
	f.Add("234/17", `{"a":"b"}`, "x", "[]", int64(1), int16(-3), "trace", true)
	f.Add(`"{},\`, `"NULL"`, "null", " ", int64(-1), int16(100), "", false)
	f.Add("", "", "\n", "NULL", int64(0), int16(0), "{", true)
	f.Fuzz(func(t *testing.T, entity, args, entity2, args2 string, number int64, priority int16, trace string, set bool) {
		for _, s := range []string{entity, args, entity2, args2, trace} {
			if queue.CheckName("text", "x"+s[:min(len(s), 500)]) != nil || len(s) > 500 {
				t.Skip() // the server would not have it
			}
		}
		var run, epoch, pack, tr any
		if set {
			run, epoch, pack, tr = number, number/2, int32(number&0xffff), trace
		}
		var ds [2]queue.Delivery
		var at [2]position
		for format := range ds {
			var dec decoder
			var err error
			ds[format], at[format], err = dec.delivery(row(t, int16(format), number, int64(7), priority, int32(2), int16(1), run, pack, epoch, entity, tr,
				[]string{entity, entity2}, []string{args, args2}))
			if err != nil {
				t.Fatal(err)
			}
		}
		if a, b := fmt.Sprintf("%+v", ds[0]), fmt.Sprintf("%+v", ds[1]); a != b || at[0] != at[1] {
			t.Errorf("as text %s, in binary %s", a, b)
		}
		d := ds[1]
		if d.Bad != nil || len(d.Items) != 2 || d.Items[0].Entity != entity || string(d.Items[1].Args) != args2 || d.Type != entity || set && (d.Trace != trace || d.Run != number) {
			t.Errorf("it became %+v", d)
		}
	})
}

// What Check takes comes out of the server as it went in.
func FuzzAMessageArrivesAsItWasSent(f *testing.F) {
	f.Add("send", "234/17", []byte(`{"a":"\u0000\ud83d\ude00"}`), "two", []byte(`[1.0e400 , -0]`), int64(1), int64(2), 3, -100, "trace")
	f.Add("é", "{\"", []byte(`"\\N\"{}"`), "NULL", []byte(`null`), int64(-1), int64(1)<<62, 0, 100, "")
	f.Add("send", "\u2028\U0010ffff", []byte("\"\u007f\u0080\ufeff\""), " ", []byte(" \t\r\n{}"), int64(0), int64(0), 1<<30, 0, "{}")
	pool := pgtest.Pool(f)
	n := 0
	f.Fuzz(func(t *testing.T, jobType, entity string, args []byte, entity2 string, args2 []byte, run, epoch int64, pack, priority int, trace string) {
		one := queue.Message{Type: jobType, Items: []queue.Item{{Entity: entity, Args: args}}, Run: run, Epoch: epoch, Pack: pack, Priority: priority, Trace: trace}
		two := one
		two.Items = append(slices.Clone(one.Items), queue.Item{Entity: entity2, Args: args2})
		n++
		q := New(pool, fmt.Sprint(n))
		sent := []queue.Message{one, one, two} // two singles together, and a pack, are sent by different statements
		if err := q.Send(t.Context(), sent...); err != nil {
			if one.Check() == nil && two.Check() == nil {
				t.Errorf("Check takes what the server refuses: %v", err)
			}
			return
		}
		ds, err := q.Receive(t.Context(), 10, []string{jobType})
		if err != nil || len(ds) != len(sent) {
			t.Fatalf("%d messages, %v", len(ds), err)
		}
		for i, d := range ds {
			if want, got := fmt.Sprintf("%+v", sent[i]), fmt.Sprintf("%+v", d.Message); got != want {
				t.Errorf("%s arrived as %s", want, got)
			}
			for _, it := range d.Items {
				if !json.Valid(it.Args) {
					t.Errorf("the arguments arrived as %q", it.Args)
				}
			}
		}
		if err := q.Ack(t.Context(), ds...); err != nil {
			t.Error(err)
		}
	})
}
