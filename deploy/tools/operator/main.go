// Reads manifests of the Prometheus operator as the operator does, and refuses what its types do not have.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func check(document []byte) error {
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(document, &kind); err != nil {
		return err
	}
	var into any
	switch kind.APIVersion + "/" + kind.Kind {
	case "monitoring.coreos.com/v1/ServiceMonitor":
		into = &monitoring.ServiceMonitor{}
	case "monitoring.coreos.com/v1/PrometheusRule":
		into = &monitoring.PrometheusRule{}
	default:
		return fmt.Errorf("%s/%s is neither a ServiceMonitor nor a PrometheusRule", kind.APIVersion, kind.Kind)
	}
	return yaml.UnmarshalStrict(document, into)
}

func main() {
	given, err := io.ReadAll(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	checked := 0
	for _, document := range bytes.Split(given, []byte("\n---\n")) {
		if err := check(document); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		checked++
	}
	fmt.Println(checked)
}
