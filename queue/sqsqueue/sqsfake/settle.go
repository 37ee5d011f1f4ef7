package sqsfake

import (
	"strconv"
	"time"
)

type settleEntry struct {
	Id                string `json:"Id"`
	QueueUrl          string `json:"QueueUrl"`
	ReceiptHandle     string `json:"ReceiptHandle"`
	VisibilityTimeout *int   `json:"VisibilityTimeout"`
}

type batchInput struct {
	QueueUrl string        `json:"QueueUrl"`
	Entries  []settleEntry `json:"Entries"`
}

type taken struct {
	Id string `json:"Id"`
}

type batchOutput struct {
	Successful []taken        `json:"Successful"`
	Failed     []refusedEntry `json:"Failed"`
}

type nothing struct{}

// each does something with each entry of a batch.
func (f *Fake) each(in *batchInput, do func(*fakeQueue, *settleEntry) *failed) (*batchOutput, *failed) {
	q, fail := f.find(in.QueueUrl)
	if fail != nil {
		return nil, fail
	}
	ids := make([]string, len(in.Entries))
	for i := range in.Entries {
		ids[i] = in.Entries[i].Id
	}
	if fail := checkBatch(ids); fail != nil {
		return nil, fail
	}
	out := &batchOutput{Successful: []taken{}, Failed: []refusedEntry{}}
	f.tally.Entries += len(in.Entries)
	for i := range in.Entries {
		e := &in.Entries[i]
		refused, acts := f.faults.partial()
		var fail *failed
		if acts {
			fail = do(q, e)
		}
		if refused {
			fail = serverError()
		}
		if fail != nil {
			out.Failed = append(out.Failed, fail.entry(e.Id))
		} else {
			out.Successful = append(out.Successful, taken{e.Id})
		}
	}
	return out, nil
}

func (f *Fake) single(e *settleEntry, do func(*fakeQueue, *settleEntry) *failed) (*nothing, *failed) {
	q, fail := f.find(e.QueueUrl)
	if fail == nil {
		fail = do(q, e)
	}
	return &nothing{}, fail
}

func (f *Fake) deleteMessage(e *settleEntry) (*nothing, *failed) { return f.single(e, f.delete) }

func (f *Fake) deleteMessageBatch(in *batchInput) (*batchOutput, *failed) {
	return f.each(in, f.delete)
}

func (f *Fake) delete(q *fakeQueue, e *settleEntry) *failed {
	m, good, fail := q.holds(e.ReceiptHandle, f.now())
	switch {
	case fail != nil:
		return fail
	case !good && q.fifo && m != nil:
		return invalid("value %s for parameter ReceiptHandle is invalid: the receipt handle has expired", e.ReceiptHandle)
	case !good || f.faults.happens(f.faults.LostAcks):
		return nil
	}
	q.remove(m)
	f.wake() // a group may go on
	return nil
}

func (f *Fake) changeVisibility(e *settleEntry) (*nothing, *failed) { return f.single(e, f.change) }

func (f *Fake) changeVisibilityBatch(in *batchInput) (*batchOutput, *failed) {
	return f.each(in, f.change)
}

func (f *Fake) change(q *fakeQueue, e *settleEntry) *failed {
	if e.VisibilityTimeout == nil {
		return refuse("MissingParameter", "the request must contain the parameter VisibilityTimeout")
	}
	if *e.VisibilityTimeout < 0 || *e.VisibilityTimeout > 43200 {
		return invalid("value %d for parameter VisibilityTimeout is invalid", *e.VisibilityTimeout)
	}
	now := f.now()
	m, good, fail := q.holds(e.ReceiptHandle, now)
	switch {
	case fail != nil:
		return fail
	case m == nil:
		return invalid("value %s for parameter ReceiptHandle is invalid: the message does not exist or is not available for visibility timeout change", e.ReceiptHandle)
	case !good:
		return &failed{"MessageNotInflight", "the specified message isn't in flight", 400, "AWS.SimpleQueueService.MessageNotInflight"}
	}
	d := time.Duration(*e.VisibilityTimeout) * time.Second
	if now.Add(d).Sub(m.since) > 12*time.Hour {
		return invalid("total VisibilityTimeout for the message is beyond the limit [43200 seconds]")
	}
	m.expires = now.Add(d)
	at := m.expires
	if d == 0 {
		at = at.Add(f.faults.upTo(f.faults.DelayedRedelivery))
	}
	q.move(m, at, now)
	f.wake()
	return nil
}

type queueInput struct {
	QueueName      string            `json:"QueueName"`
	QueueUrl       string            `json:"QueueUrl"`
	Attributes     map[string]string `json:"Attributes"`
	AttributeNames []string          `json:"AttributeNames"`
}

type queueOutput struct {
	QueueUrl string `json:"QueueUrl"`
}

func (f *Fake) createQueue(in *queueInput) (*queueOutput, *failed) {
	q, fail := f.create(in.QueueName, in.Attributes)
	if fail != nil {
		return nil, fail
	}
	return &queueOutput{q.url()}, nil
}

func (f *Fake) getQueueURL(in *queueInput) (*queueOutput, *failed) {
	q, fail := f.find("/" + in.QueueName)
	if fail != nil {
		return nil, fail
	}
	return &queueOutput{q.url()}, nil
}

type attributesOutput struct {
	Attributes map[string]string `json:"Attributes"`
}

func (f *Fake) getQueueAttributes(in *queueInput) (*attributesOutput, *failed) {
	q, fail := f.find(in.QueueUrl)
	if fail != nil {
		return nil, fail
	}
	visible, held, delayed := q.count(f.now())
	all := map[string]string{
		"ApproximateNumberOfMessages":           strconv.Itoa(visible),
		"ApproximateNumberOfMessagesNotVisible": strconv.Itoa(held),
		"ApproximateNumberOfMessagesDelayed":    strconv.Itoa(delayed),
		"CreatedTimestamp":                      strconv.FormatInt(q.created.Unix(), 10),
	}
	for k, v := range q.attributes {
		all[k] = v
	}
	out := &attributesOutput{map[string]string{}}
	for _, name := range in.AttributeNames {
		if name == "All" {
			out.Attributes = all
			break
		}
		if v, ok := all[name]; ok {
			out.Attributes[name] = v
		}
	}
	return out, nil
}

func (f *Fake) setQueueAttributes(in *queueInput) (*nothing, *failed) {
	q, fail := f.find(in.QueueUrl)
	if fail == nil {
		fail = q.set(in.Attributes)
	}
	return &nothing{}, fail
}

func (f *Fake) purgeQueue(in *queueInput) (*nothing, *failed) {
	q, fail := f.find(in.QueueUrl)
	if fail != nil {
		return nil, fail
	}
	for _, m := range q.messages {
		q.remove(m)
	}
	return &nothing{}, nil
}

type sourcesOutput struct {
	QueueUrls []string `json:"queueUrls"`
}

func (f *Fake) listSources(in *queueInput) (*sourcesOutput, *failed) {
	dlq, fail := f.find(in.QueueUrl)
	if fail != nil {
		return nil, fail
	}
	out := &sourcesOutput{[]string{}}
	for _, q := range f.queues {
		if p, ok := q.redrivePolicy(); ok && f.byARN(p.target) == dlq {
			out.QueueUrls = append(out.QueueUrls, q.url())
		}
	}
	return out, nil
}
