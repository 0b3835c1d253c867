// flux is given health checks (the `healthCheckExprs` of a Kustomization, as a JSON list) and reads Kubernetes objects,
// one JSON document a line; it prints for each what Flux's kustomize-controller makes of its status.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func main() {
	checks, err := read(os.Args[1])
	if err != nil {
		fail(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(lines.Bytes()); err != nil {
			fail(err)
		}
		check := checks[object.GetAPIVersion()+" "+object.GetKind()]
		if check == nil {
			fail(fmt.Errorf("no check for a %s", object.GetKind()))
		}
		result, err := check.Evaluate(context.Background(), object)
		if err != nil {
			fail(err)
		}
		fmt.Println(result.Status)
	}
	if err := lines.Err(); err != nil {
		fail(err)
	}
}

func read(text string) (map[string]*cel.StatusEvaluator, error) {
	var listed []kustomize.CustomHealthCheck
	if err := json.Unmarshal([]byte(text), &listed); err != nil {
		return nil, err
	}
	checks := map[string]*cel.StatusEvaluator{}
	for _, each := range listed {
		check, err := cel.NewStatusEvaluator(&each.HealthCheckExpressions)
		if err != nil {
			return nil, err
		}
		checks[each.APIVersion+" "+each.Kind] = check
	}
	return checks, nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
