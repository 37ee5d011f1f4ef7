package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/modules/postgres"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

// The containers of this test binary, which TEST_DATABASE_URL and TEST_SQS_ENDPOINT name: to
// package pgtest, to package sqspeer, and to the tests that are run on them.
var (
	database *postgres.PostgresContainer
	sqs      testcontainers.Container
	noEngine error
)

var (
	postgresImage = cmp.Or(os.Getenv("TEST_POSTGRES_IMAGE"), "postgres:17")
	sqsImage      = cmp.Or(os.Getenv("TEST_SQS_IMAGE"), "softwaremill/elasticmq-native:1.7.1")
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute) // images may be pulled
	defer cancel()
	if noEngine = engine(ctx); noEngine == nil {
		defer terminate()
		if err := errors.Join(startPostgres(ctx), startSQS(ctx)); err != nil {
			fmt.Fprintln(os.Stderr, "containers:", err)
			return 1
		}
	}
	return pgtest.Main(m)
}

// engine returns what is wrong with the Docker engine.
func engine(ctx context.Context) error {
	p, err := testcontainers.NewDockerProvider()
	if err != nil {
		return err
	}
	return errors.Join(p.Health(ctx), p.Close())
}

// need skips a test where there is no engine.
func need(t *testing.T) {
	t.Helper()
	switch {
	case noEngine == nil:
	case os.Getenv("TEST_REQUIRE") == "1":
		t.Fatalf("no Docker engine answers, and TEST_REQUIRE=1: %v", noEngine)
	default:
		t.Skipf("no Docker engine answers: %v", noEngine)
	}
}

// ours marks the containers, so that `run` can remove those of a test binary that was killed.
var ours = testcontainers.WithLabels(map[string]string{"oncemore": "test"})

// patience is how long a container may take to be ready: as a rule a second.
const patience = 2 * time.Minute

func startPostgres(ctx context.Context) (err error) {
	// SIGTERM would have the server wait for its clients; the official image says the same.
	fast := testcontainers.WithConfigModifier(func(c *container.Config) { c.StopSignal = "SIGINT" })
	// The first time the server says so it is ready for nobody else yet.
	ready := testcontainers.WithAdditionalWaitStrategyAndDeadline(patience,
		wait.ForLog("database system is ready to accept connections").WithOccurrence(2).WithStartupTimeout(patience),
		wait.ForListeningPort("5432/tcp").WithStartupTimeout(patience))
	database, err = postgres.Run(ctx, postgresImage, ours, fast, ready,
		testcontainers.WithCmdArgs("-c", "max_connections=300", "-c", "full_page_writes=off"))
	if err != nil {
		return fmt.Errorf("start %s: %w", postgresImage, err)
	}
	dsn, err := database.ConnectionString(ctx, "sslmode=disable")
	if err != nil {
		return err
	}
	return os.Setenv("TEST_DATABASE_URL", dsn)
}

func startSQS(ctx context.Context) (err error) {
	sqs, err = testcontainers.Run(ctx, sqsImage, ours, testcontainers.WithExposedPorts("9324/tcp"),
		testcontainers.WithWaitStrategy(wait.ForHTTP("/health").WithPort("9324/tcp").WithStartupTimeout(patience)))
	if err != nil {
		return fmt.Errorf("start %s: %w", sqsImage, err)
	}
	endpoint, err := sqs.PortEndpoint(ctx, "9324/tcp", "http")
	if err != nil {
		return err
	}
	return os.Setenv("TEST_SQS_ENDPOINT", endpoint)
}

func terminate() {
	for _, c := range []testcontainers.Container{database, sqs} {
		if err := testcontainers.TerminateContainer(c); err != nil {
			fmt.Fprintln(os.Stderr, "containers:", err)
		}
	}
}
