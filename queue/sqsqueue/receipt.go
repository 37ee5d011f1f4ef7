package sqsqueue

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
)

// A receipt is what settles a delivery: "since group handle". since is when SQS handed it
// out, by this machine's clock, for the 12 hours that a message can be held; the group is
// that of a FIFO queue, and empty else.
type receipt struct {
	since  time.Time
	group  string
	handle string // SQS's own
}

func (r receipt) String() string {
	return strconv.FormatInt(r.since.Unix(), 36) + " " + r.group + " " + r.handle
}

func parseReceipt(s string) (r receipt, ok bool) {
	parts := strings.SplitN(s, " ", 3)
	if len(parts) != 3 || parts[2] == "" {
		return r, false
	}
	since, err := strconv.ParseInt(parts[0], 36, 64)
	return receipt{since: time.Unix(since, 0), group: parts[1], handle: parts[2]}, err == nil
}

// left is how much longer the delivery can be held.
func (r receipt) left(now time.Time) time.Duration {
	return mostVisible - now.Sub(r.since) - 2*time.Second // since has no fractions, and clocks differ
}

// A held is a delivery with its receipt.
type held struct {
	queue.Delivery
	receipt
}

// known refuses receipts that no queue of this kind gave out.
func known(ds []queue.Delivery) ([]held, error) {
	out := make([]held, len(ds))
	for i, d := range ds {
		r, ok := parseReceipt(d.Receipt)
		if !ok {
			return nil, fmt.Errorf("%.40q is no receipt of an SQS queue", d.Receipt)
		}
		out[i] = held{d, r}
	}
	return out, nil
}
