package command

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	configv1 "retinue.dev/services/api/config/v1"
)

func endpointCommand(sh *shell) *cobra.Command {
	c := &cobra.Command{Use: "endpoint", Short: "Take endpoints of clusters out, and put them back"}
	c.AddCommand(
		drainEndpointCommand(sh, "drain", "Give an endpoint no new requests",
			"Requests that the endpoint has end as they would; it gets no new ones and its idle connections are closed. It stays so over\n"+
				"reloads, restarts and upgrades until `retinue endpoint undrain`; `retinue status` shows it. A cluster whose endpoints are all\n"+
				"drained answers 503. ADDRESS is as it is written or found: IP:PORT, unix:/path, or NAME:PORT of a logical endpoint.", false),
		drainEndpointCommand(sh, "undrain", "Give an endpoint requests again", "", true),
	)
	return c
}

func drainEndpointCommand(sh *shell, use, short, long string, undrain bool) *cobra.Command {
	return &cobra.Command{
		Use: use + " CLUSTER ADDRESS", Short: short, Long: long, Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return sh.configd(30*time.Second, func(c *configCall) error {
				reply, err := c.Client.DrainEndpoint(c.Context, &configv1.DrainEndpointRequest{Cluster: args[0], Address: args[1], Undrain: undrain})
				if err != nil {
					return err
				}
				if sh.json {
					text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(reply)
					if err == nil {
						_, err = fmt.Fprintln(sh.out, string(text))
					}
					return err
				}
				already := ""
				if !reply.GetChanged() {
					already = " already"
				}
				_, err = fmt.Fprintf(sh.out, "%s of %s: %sed%s\n", args[1], args[0], use, already)
				return err
			})
		},
	}
}
