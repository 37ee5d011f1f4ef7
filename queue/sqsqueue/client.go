package sqsqueue

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go"
)

// openTime bounds what New may wait for. Where no credentials are, the SDK asks the address
// at which a machine in EC2 would find some, which takes a few seconds to fail.
const openTime = 15 * time.Second

// open finds a queue and asks it for its attributes.
func open(ctx context.Context, client *sqs.Client, urlOrName string) (*sqs.Client, string, map[string]string, error) {
	if strings.TrimSpace(urlOrName) == "" {
		return nil, "", nil, errors.New("no queue is named: give its URL or its name")
	}
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	if client == nil {
		var err error
		if client, err = newClient(ctx, urlOrName); err != nil {
			return nil, "", nil, err
		}
	}
	url := urlOrName
	if !strings.Contains(url, "://") {
		out, err := client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &urlOrName})
		if err != nil {
			return nil, "", nil, explain(client, urlOrName, "sqs:GetQueueUrl", err)
		}
		url = *out.QueueUrl
	}
	attributes, err := attributesOf(ctx, client, url)
	if err != nil {
		return nil, "", nil, explain(client, urlOrName, "sqs:GetQueueAttributes", err)
	}
	return client, url, attributes, nil
}

// regional are the URLs that name a region.
var regional = regexp.MustCompile(`^https://sqs\.([a-z0-9-]+)\.amazonaws\.com`)

// newClient makes a client by the SDK's own chain.
func newClient(ctx context.Context, urlOrName string) (*sqs.Client, error) {
	options := []func(*config.LoadOptions) error{config.WithHTTPClient(httpClient())}
	if m := regional.FindStringSubmatch(urlOrName); m != nil {
		options = append(options, config.WithDefaultRegion(m[1]))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("read the AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		return nil, errors.New("no AWS region is set: set AWS_REGION, or give the queue's whole URL")
	}
	if cfg.Credentials == nil {
		return nil, errNoCredentials
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoCredentials, err)
	}
	return sqs.NewFromConfig(cfg), nil
}

var errNoCredentials = errors.New("no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give the machine or the container a role")

// httpClient keeps as many connections as a worker has polls and batches on the way. It has
// no timeout for the answer: a poll waits longer than any call should.
func httpClient() *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConns, t.MaxIdleConnsPerHost = 100, 100
	})
}

// explain says what is to be done about an error of the first calls.
func explain(client *sqs.Client, queue, action string, err error) error {
	where := "region " + client.Options().Region
	if e := client.Options().BaseEndpoint; e != nil {
		where = *e
	}
	code := codeOf(err)
	switch {
	case isMissing(code):
		return fmt.Errorf("there is no queue %s at %s: create it, or look whether region and account are the right ones", queue, where)
	case isDenied(code):
		return fmt.Errorf("these credentials may not %s on queue %s: see the policy in docs/sqs.md: %w", action, queue, err)
	}
	return fmt.Errorf("ask SQS at %s about queue %s: %w", where, queue, err)
}

// codeOf is SQS's word for an error; empty: it is none of SQS's.
func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func isMissing(code string) bool {
	return code == "QueueDoesNotExist" || code == "AWS.SimpleQueueService.NonExistentQueue"
}

func isDenied(code string) bool {
	switch code {
	case "AccessDenied", "AccessDeniedException", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "InvalidSecurity", "ExpiredToken":
		return true
	}
	return false
}
