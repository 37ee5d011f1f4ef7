package pgqueue

import (
	"encoding/binary"
	"encoding/json"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/queue"
)

// A decoder reads the rows of a claim. It copies each array once and cuts the items
// out of the copy: to scan a pack of a hundred items into slices of strings costs
// two hundred allocations more.
type decoder struct{ lastType string }

func (dec *decoder) delivery(rows pgx.Rows) (queue.Delivery, position, error) {
	for _, f := range rows.FieldDescriptions() {
		if f.Format != pgx.BinaryFormatCode && f.DataTypeOID != textOID { // a text is the same in both
			return scanDelivery(rows)
		}
	}
	var d queue.Delivery
	v := rows.RawValues()
	id, lock := int64(binary.BigEndian.Uint64(v[0])), int64(binary.BigEndian.Uint64(v[1]))
	d.Receipt = receipt(id, lock)
	d.Priority = int(int16(binary.BigEndian.Uint16(v[2])))
	d.Received = int(int32(binary.BigEndian.Uint32(v[3])))
	d.Deferred = int(int16(binary.BigEndian.Uint16(v[4])))
	if v[5] != nil {
		d.Run = int64(binary.BigEndian.Uint64(v[5]))
	}
	if v[6] != nil {
		d.Pack = int(int32(binary.BigEndian.Uint32(v[6])))
	}
	if v[7] != nil {
		d.Epoch = int64(binary.BigEndian.Uint64(v[7]))
	}
	if string(v[8]) != dec.lastType {
		dec.lastType = string(v[8])
	}
	d.Type = dec.lastType
	d.Trace = string(v[9])
	items, err := decodeItems(v[10], v[11])
	if err != nil {
		// Nothing of ours writes such a row, but a row is no reason to stop the queue.
		d.Bad = append(append([]byte{}, v[10]...), v[11]...)
	}
	d.Items = items
	return d, position{rank: int16(-d.Priority), id: id}, nil
}

// scanDelivery reads a row in text format, which pgx's simple modes use.
func scanDelivery(rows pgx.Rows) (queue.Delivery, position, error) {
	var d queue.Delivery
	var id, lock int64
	var run, epoch *int64
	var pack *int
	var trace *string
	v := rows.RawValues()
	err := rows.Scan(&id, &lock, &d.Priority, &d.Received, &d.Deferred, &run, &pack, &epoch, &d.Type, &trace, nil, nil)
	if err != nil {
		return d, position{}, err
	}
	d.Receipt = receipt(id, lock)
	if run != nil {
		d.Run = *run
	}
	if pack != nil {
		d.Pack = *pack
	}
	if epoch != nil {
		d.Epoch = *epoch
	}
	if trace != nil {
		d.Trace = *trace
	}
	var entities, args []string
	types := rows.TypeMap()
	err1 := types.Scan(textArrayOID, pgx.TextFormatCode, v[10], &entities)
	err2 := types.Scan(textArrayOID, pgx.TextFormatCode, v[11], &args)
	if err1 != nil || err2 != nil || len(entities) != len(args) || len(args) == 0 {
		d.Bad = append(append([]byte{}, v[10]...), v[11]...)
	} else {
		d.Items = make([]queue.Item, len(entities))
		for i := range d.Items {
			d.Items[i] = queue.Item{Entity: entities[i], Args: json.RawMessage(args[i])}
		}
	}
	return d, position{rank: int16(-d.Priority), id: id}, nil
}

var errArray = errors.New("not an array of texts")

// decodeItems makes items of two text[] values in binary format.
func decodeItems(entities, args []byte) ([]queue.Item, error) {
	es, n, err := openArray(entities)
	if err != nil {
		return nil, err
	}
	as, m, err := openArray(args)
	if err != nil {
		return nil, err
	}
	if n != m || n == 0 {
		return nil, errors.New("the arrays of a message differ in length, or are empty")
	}
	names, texts := string(es), append([]byte(nil), as...)
	items := make([]queue.Item, n)
	e, a := 0, 0
	for i := range items {
		e0, e1, ok := element(es, e)
		a0, a1, ok2 := element(as, a)
		if !ok || !ok2 {
			return nil, errArray
		}
		items[i] = queue.Item{Entity: names[e0:e1], Args: texts[a0:a1:a1]}
		e, a = e1, a1
	}
	if e != len(es) || a != len(as) {
		return nil, errArray
	}
	return items, nil
}

const textOID, textArrayOID = 25, 1009

// openArray returns the elements of a one-dimensional text[] in binary format, and
// how many there are. The format: dimensions, whether there are nulls, the element
// type; for each dimension its length and lower bound; for each element its length
// (-1 is null) and bytes. All numbers have four bytes.
func openArray(b []byte) (elements []byte, n int, err error) {
	if len(b) < 12 || binary.BigEndian.Uint32(b[8:]) != textOID {
		return nil, 0, errArray
	}
	switch binary.BigEndian.Uint32(b) {
	case 0:
		return nil, 0, nil
	case 1:
		if len(b) < 20 {
			return nil, 0, errArray
		}
	default:
		return nil, 0, errArray
	}
	count, elements := binary.BigEndian.Uint32(b[12:]), b[20:]
	if uint64(count)*4 > uint64(len(elements)) {
		return nil, 0, errArray
	}
	return elements, int(count), nil
}

// element returns where the bytes of the element at b[at:] begin and end.
func element(b []byte, at int) (from, to int, ok bool) {
	if len(b)-at < 4 {
		return 0, 0, false
	}
	n := binary.BigEndian.Uint32(b[at:])
	from = at + 4
	if uint64(n) > uint64(len(b)-from) {
		return 0, 0, false // too long, or null
	}
	return from, from + int(n), true
}
