// The API server of an older minor, for the admission policy and RBAC.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Args = os.Args[1:] // called as the other one: with the program's name
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
