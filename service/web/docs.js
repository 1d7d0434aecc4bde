// The API, to read and to try: Swagger UI over the service's own document, with the key that this tab holds.

import { key } from "./access.js";

const ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  validatorUrl: null, // it would send the document to another host
  onComplete: () => key.value && ui.preauthorizeApiKey("key", key.value),
});
